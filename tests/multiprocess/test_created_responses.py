"""Who created which response, over processes that are killed: what is found is always right."""

import signal
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain

import pytest

from app.admission.limiter import Limiter
from app.routing import created_responses
from app.routing.created_responses import CreatedResponses, Creator
from app.shared_memory.table import SharedTable, name_hash
from tests.support.forks import Barrier, Parent, die_at

pytestmark = pytest.mark.slow

SIZE = 4


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A process that forks, with a table of its own."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


def small(table: SharedTable) -> CreatedResponses:
    """A view of the table that uses the first few entries only."""
    responses = CreatedResponses(table)
    responses._size = SIZE
    return responses


def creator(response_id: str) -> Creator:
    """Who creates a response of this id, in these tests: its model and endpoint are made of the id."""
    return Creator(*map(name_hash, (f"model of {response_id}", f"http://{response_id}", f"tenant of {response_id}")))


def note(responses: CreatedResponses, response_id: str) -> None:
    """Note a response, created by its `creator`."""
    responses.note(response_id, f"model of {response_id}", f"http://{response_id}", f"tenant of {response_id}")


def test_what_one_process_notes_all_find(parent: Parent) -> None:
    """Processes that were forked before, each notes its own and finds everybody's."""
    noted = Barrier()
    names = [[f"r{worker}_{number}" for number in range(200)] for worker in range(4)]

    def work(worker: int, _: Limiter) -> None:
        responses = CreatedResponses(parent.table)
        for name in names[worker]:
            note(responses, name)
        noted.arrive()
        for name in chain.from_iterable(names):
            assert responses.find(name) == creator(name)

    for worker in range(4):
        parent.fork(partial(work, worker))
    noted.wait_arrived(4)
    noted.lift(4)
    parent.reap_all()
    noted.close()


def _death_at(parent: Parent, step: int) -> int:
    """Kill a process before that line of `note`, and check what it leaves behind. Returns how it ended."""
    responses = small(parent.table)
    for array in (responses._chains, responses._next, responses._ids, responses._models, responses._endpoints):
        array[:SIZE] = memoryview(bytes(8 * SIZE)).cast("q")
    responses._cursor[0] = 0
    old = [f"old {number}" for number in range(SIZE)]
    for name in old:
        note(responses, name)

    def victim(_: Limiter) -> None:
        own = small(parent.table)
        sys.settrace(die_at(step, {created_responses.__file__}))
        for name in ("new", "old 2", "newer"):  # one of them has an older entry
            note(own, name)
        sys.settrace(None)

    pid = parent.fork(victim)
    signal.alarm(20)  # a lock that outlived its holder would hang here
    ending = parent.reap(pid)
    for name in (*old, "new", "newer"):
        assert responses.find(name) in (None, creator(name)), f"{name} has a wrong creator"
    for number in range(3 * SIZE):
        note(responses, f"later {number}")
        assert responses.find(f"later {number}") == creator(f"later {number}")
    for number in range(2 * SIZE, 3 * SIZE):
        assert responses.find(f"later {number}") == creator(f"later {number}"), "an entry was lost after the death"
    signal.alarm(0)
    return ending


@pytest.mark.pure
def test_death_before_any_line_leaves_no_wrong_entry(parent: Parent) -> None:
    """SIGKILL before every line of `note` while entries are scarce and chains are shared.

    What is found is right or nothing; the lock is free; and the table goes on as if nothing had happened.
    """
    step = 0
    while (ending := _death_at(parent, step)) != 0:  # 0: it lived to the end, so every line had its turn
        assert ending == -signal.SIGKILL
        step += 1
    assert step > 40, "the victim was not killed inside note"
