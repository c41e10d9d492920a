"""The retry budget: a share of all requests, whatever fails, over all processes."""

import os
import random
from collections.abc import Iterator

import pytest

from app.admission.limiter import Limiter
from app.routing.retry_budget import RetryBudget, RetryBudgets
from tests.support.forks import Barrier, Parent

ID = 2
RESERVE = 10


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("failing", [0.05, 0.3, 1.0])
def test_retries_are_at_most_a_share_of_requests_and_the_reserve(parent: Parent, share: float, failing: float) -> None:
    """20,000 requests, some of which fail: at no moment were more retried, and if enough fail the share is used."""
    budget, dice = RetryBudget(parent.table, ID, share), random.Random(1)
    retries = wanted = 0
    for requests in range(1, 20_001):
        budget.deposit()
        if dice.random() < failing:
            wanted += 1
            retries += budget.try_withdraw()
            assert retries <= share * requests + RESERVE + 1e-9
    if failing > share:
        assert retries > share * 20_000
    elif failing < share / 2:
        assert retries == wanted, "what the budget can pay for is retried"


def test_reserve_lets_ten_failures_of_a_quiet_model_be_retried(parent: Parent) -> None:
    """Nothing was deposited: ten, and no more. However much is deposited then, ten is what is saved up."""
    budget = RetryBudget(parent.table, ID, 0.2)
    assert [budget.try_withdraw() for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(4):
        budget.deposit()
        assert not budget.try_withdraw()
    budget.deposit()
    assert [budget.try_withdraw(), budget.try_withdraw()] == [True, False]
    for share in (0.2, 0.3):
        budget = RetryBudget(parent.table, ID, share)
        for _ in range(1000):
            budget.deposit()
        assert sum(budget.try_withdraw() for _ in range(100)) == 10


def test_share_of_zero_allows_no_retry(parent: Parent) -> None:
    """Not even from the reserve."""
    budget = RetryBudget(parent.table, ID, 0.0)
    for _ in range(100):
        budget.deposit()
        assert not budget.try_withdraw()


def test_models_have_budgets_of_their_own(parent: Parent) -> None:
    """One model's failures take nothing from another; one that is reset begins again."""
    budget, other = RetryBudget(parent.table, ID, 0.2), RetryBudget(parent.table, ID + 1, 0.2)
    while budget.try_withdraw():
        pass
    assert sum(other.try_withdraw() for _ in range(20)) == RESERVE
    RetryBudgets(parent.table).reset(ID)
    assert not other.try_withdraw()
    assert sum(budget.try_withdraw() for _ in range(20)) == RESERVE


def test_budget_is_exact_over_processes(parent: Parent) -> None:
    """Four processes whose every request fails: together they retry no more than the share of all and the reserve."""
    start, each = Barrier(), 5000
    retried_read, retried_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        budget = RetryBudget(parent.table, ID, 0.2)
        start.arrive()
        retries = 0
        for _ in range(each):
            budget.deposit()
            retries += budget.try_withdraw()
        os.write(retried_write, retries.to_bytes(4, "little"))

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    retries = sum(int.from_bytes(os.read(retried_read, 4), "little") for _ in range(4))
    os.close(retried_read)
    os.close(retried_write)
    most = 0.2 * 4 * each + RESERVE
    assert most - 1 <= retries <= most, "as nearly nothing was saved up, all that was deposited was used"


def test_no_payment_and_no_retry_is_lost(parent: Parent) -> None:
    """Four processes deposit and withdraw as much, as fast as they can: at the end as much is left as before."""
    start, budget = Barrier(), RetryBudget(parent.table, ID, 1.0)
    assert sum(budget.try_withdraw() for _ in range(5)) == 5

    def work(_limiter: Limiter) -> None:
        start.arrive()
        for _ in range(5000):
            budget.deposit()
            assert budget.try_withdraw()

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    assert sum(budget.try_withdraw() for _ in range(20)) == RESERVE - 5


def test_last_of_the_budget_is_taken_once(parent: Parent) -> None:
    """Four processes take at once, and nobody deposits: ten withdrawals succeed in all."""
    start = Barrier()
    taken_read, taken_write = os.pipe()

    def work(_limiter: Limiter) -> None:
        budget = RetryBudget(parent.table, ID, 0.2)
        start.arrive()
        for _ in range(20):
            if budget.try_withdraw():
                os.write(taken_write, b".")

    for _ in range(4):
        parent.fork(work)
    start.wait_arrived(4)
    start.lift(4)
    parent.reap_all()
    assert len(os.read(taken_read, 100)) == RESERVE
    os.close(taken_read)
    os.close(taken_write)
