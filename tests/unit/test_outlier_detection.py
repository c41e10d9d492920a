"""The states of endpoints: what ejects one, for how long, and how it comes back."""

from collections.abc import Iterator

import pytest

from app.config.route_schema import Ejection
from app.routing import endpoint_health, outlier_detection
from app.routing.endpoint_health import EndpointHealth
from app.routing.endpoint_records import EndpointRecords
from app.routing.outlier_detection import Ended, Outcome, OutlierDetector, PoolRules
from app.shared_memory.table import SharedTable
from tests.support.stopped_clock import BEGIN_MS, under_stopped_clock

ID = 3
PEERS = [ID, 4, 5, 6]
LEASE_MS = 10_000
RULES = Ejection(
    consecutive_failures=3,
    failure_rate=0.5,
    min_requests=10,
    window_s=100,
    base_s=5,
    max_s=300,
    max_share=0.5,
)


class Bench:
    """OutlierDetector and a clock that goes only when told."""

    def __init__(self, table: SharedTable) -> None:
        self.records = records = EndpointRecords(table)
        self.detector = OutlierDetector(records)
        self.health = EndpointHealth(records)
        self.now = BEGIN_MS
        self.rules = RULES
        self.peers = PEERS
        self.panic_threshold = 0.0

    def usable(self, shared_id: int = ID) -> bool:
        return self.health.is_available(shared_id, self.now)

    def begin(self, shared_id: int = ID) -> bool:
        """Begin an attempt. Returns whether it is the trial."""
        assert self.usable(shared_id)
        return self.detector.begin(shared_id, self.now)

    def end(self, outcome: Outcome, *, shared_id: int = ID, trial: bool = False, first_byte_us: int = 0) -> bool:
        """End an attempt at once."""
        return self.end_begun(self.now, outcome, shared_id=shared_id, trial=trial, first_byte_us=first_byte_us)

    def end_begun(
        self, began_ms: int, outcome: Outcome, *, shared_id: int = ID, trial: bool = False, first_byte_us: int = 0
    ) -> bool:
        """End an attempt that began at this time."""
        pool = PoolRules(self.peers, self.rules, self.panic_threshold)
        return self.detector.end(shared_id, Ended(outcome, trial, began_ms, first_byte_us), pool)

    def leave_after(self, seconds: float, *, trial: bool = False) -> bool:
        """Begin an attempt whose client leaves after this time without a first byte."""
        began = self.now
        self.now += int(seconds * 1000)
        return self.end_begun(began, Outcome.UNANSWERED, trial=trial)

    def fail(self, times: int = 1, *, shared_id: int = ID) -> list[bool]:
        return [self.end(Outcome.FAILURE, shared_id=shared_id) for _ in range(times)]

    def out_for(self, shared_id: int = ID) -> int:
        """Milliseconds until it may be tried."""
        return self.health.unavailable_until(shared_id) - self.now

    def half_open(self, shared_id: int = ID) -> None:
        """Eject it and let the time pass."""
        assert self.fail(self.rules.consecutive_failures, shared_id=shared_id)[-1]
        self.now += self.out_for(shared_id)

    def bring_back(self, shared_id: int = ID) -> None:
        self.half_open(shared_id)
        assert self.begin(shared_id)
        assert not self.end(Outcome.SUCCESS, shared_id=shared_id, trial=True)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """OutlierDetector of which nothing is known, and their clock."""
    with under_stopped_clock(Bench, monkeypatch, outlier_detection, endpoint_health) as bench:
        yield bench


def test_new_endpoint_is_in(bench: Bench) -> None:
    """Nothing is known: it is available, and no attempt is a trial."""
    assert bench.usable()
    assert not bench.begin()


def test_failures_in_a_row_eject(bench: Bench) -> None:
    """The third failure in a row ejects, for the base time, and the others go on."""
    assert bench.fail(3) == [False, False, True]
    assert not bench.usable()
    assert bench.out_for() == 5000
    assert bench.usable(4)
    bench.now += 4999
    assert not bench.usable()
    bench.now += 1
    assert bench.usable()


def test_success_interrupts_a_row_of_failures(bench: Bench) -> None:
    """Two failures, a success, two failures: no three in a row."""
    for _ in range(2):
        assert bench.fail(2) == [False, False]
        bench.end(Outcome.SUCCESS)
    assert bench.usable()


def test_abandoned_attempts_say_nothing(bench: Bench) -> None:
    """A client that leaves neither ends a row of failures nor adds to it, and is not counted in the window."""
    bench.fail(2)
    for _ in range(20):
        assert not bench.end(Outcome.ABANDONED)
    assert bench.usable()
    assert bench.fail() == [True]


def test_rate_of_failures_in_a_window_ejects(bench: Bench) -> None:
    """Never three in a row, but half of ten: the tenth request ejects; nine are too few to say."""
    for _ in range(4):
        assert not bench.end(Outcome.SUCCESS)
        assert bench.fail() == [False]
    assert not bench.end(Outcome.SUCCESS)
    assert bench.fail() == [True]


def test_rate_below_the_limit_ejects_nobody(bench: Bench) -> None:
    """A third of many requests fails: it stays in."""
    for _ in range(100):
        assert not any([bench.end(Outcome.SUCCESS), bench.end(Outcome.SUCCESS), *bench.fail()])


def test_window_that_is_over_counts_no_more(bench: Bench) -> None:
    """Failures of the last window are forgotten in the next."""
    bench.now = 100_000 * 500
    for _ in range(4):
        assert bench.fail() == [False]
        bench.end(Outcome.SUCCESS)
    bench.now += 100_000
    for _ in range(3):
        assert not bench.end(Outcome.SUCCESS)
        assert bench.fail() == [False]
    assert bench.usable()


def test_each_ejection_lasts_twice_as_long_up_to_the_most(bench: Bench) -> None:
    """A trial that fails ejects anew, for 5, 10, 20 … and at most 300 seconds, however often."""
    bench.half_open()
    lasted = []
    for _ in range(70):
        assert bench.begin()
        assert bench.end(Outcome.FAILURE, trial=True)
        lasted.append(bench.out_for() // 1000)
        bench.now += bench.out_for()
    assert lasted[:7] == [10, 20, 40, 80, 160, 300, 300]
    assert set(lasted[6:]) == {300}


@pytest.mark.parametrize(("stayed_in_ms", "next_ms"), [(5000, 10_000), (5001, 5000)])
def test_ejections_start_anew_after_it_stayed_in_for_longer(bench: Bench, stayed_in_ms: int, next_ms: int) -> None:
    """Out for 5 seconds, in for as long: the next is the second of a row. In for longer: it is a first one again."""
    bench.bring_back()
    bench.now += stayed_in_ms
    assert bench.fail(3)[-1]
    assert bench.out_for() == next_ms


def test_trial_that_fails_never_starts_anew(bench: Bench) -> None:
    """However late the trial comes, being half-open is not staying in."""
    bench.half_open()
    bench.now += 10_000_000
    assert bench.begin()
    assert bench.end(Outcome.FAILURE, trial=True)
    assert bench.out_for() == 10_000


def test_share_of_endpoints_that_are_out_has_a_limit(bench: Bench) -> None:
    """Half of four may be out: the third to fail stays in, and is ejected when another has come back."""
    assert bench.fail(3, shared_id=3)[-1]
    assert bench.fail(3, shared_id=4)[-1]
    assert bench.fail(10, shared_id=5) == [False] * 10
    assert bench.usable(5)
    bench.now += 5000
    assert bench.fail(shared_id=5) == [False], "half-open ones are out, too"
    assert bench.begin(3)
    bench.end(Outcome.SUCCESS, shared_id=3, trial=True)
    assert bench.fail(shared_id=5) == [True]
    assert not bench.usable(5)


@pytest.mark.parametrize(("share", "peers", "ejected"), [(0.5, 1, 0), (0.0, 4, 0), (1.0, 4, 4), (0.5, 3, 1)])
def test_limit_of_the_share_is_rounded_down(bench: Bench, share: float, peers: int, ejected: int) -> None:
    """The only endpoint is never ejected with a share under 1, none with 0, and all with 1."""
    bench.peers = list(range(peers))
    bench.rules = Ejection(consecutive_failures=1, max_share=share)
    assert sum(bench.fail(shared_id=shared_id) == [True] for shared_id in bench.peers) == ejected
    assert sum(not bench.usable(shared_id) for shared_id in bench.peers) == ejected


def test_trial_that_fails_lets_it_in_if_the_share_became_smaller(bench: Bench) -> None:
    """New routes allow none to be out: a failed trial must not keep one out, nor is it forgotten that it was."""
    bench.half_open()
    assert bench.begin()
    bench.rules = Ejection(max_share=0)
    assert not bench.end(Outcome.FAILURE, trial=True)
    assert not bench.begin()
    bench.rules = RULES
    assert bench.fail(2) == [False, True]
    assert bench.out_for() == 10_000


def test_one_trial_at_a_time(bench: Bench) -> None:
    """Once the time is over the first to choose it is the trial, and it may not be tried until that ends."""
    bench.health.assume_healthy(ID)
    bench.half_open()
    assert bench.health.is_up(ID), "a router without usable endpoints gets no requests, and so no trial"
    assert bench.begin()
    assert not bench.usable()
    assert not bench.health.is_up(ID)


def test_trial_that_succeeds_brings_it_back(bench: Bench) -> None:
    """It is in, and what follows is no trial; failures from before don't count."""
    bench.bring_back()
    assert not bench.begin()
    assert bench.fail(2) == [False, False]


def test_trial_that_is_abandoned_makes_way_for_the_next(bench: Bench) -> None:
    """The client of the trial left: the very next request is the trial, and no time is lost."""
    bench.half_open()
    assert bench.begin()
    assert not bench.end(Outcome.ABANDONED, trial=True)
    assert bench.begin()
    assert not bench.usable()


def test_lease_of_a_trial_that_died_runs_out(bench: Bench) -> None:
    """The worker of the trial was killed: nobody tries for the time of the lease, and then one does."""
    bench.half_open()
    assert bench.begin()
    bench.now += LEASE_MS - 1
    assert not bench.usable()
    bench.now += 1
    assert bench.begin()
    assert not bench.usable()


def test_slow_trial_decides_although_others_have_begun(bench: Bench) -> None:
    """An endpoint that needs longer than the lease comes back all the same when the first trial succeeds."""
    bench.half_open()
    for _ in range(5):
        assert bench.begin()
        bench.now += LEASE_MS
    bench.end(Outcome.SUCCESS, trial=True)
    assert bench.usable()
    assert not bench.begin()


def test_trial_that_ends_after_another_decided_is_an_attempt_like_any(bench: Bench) -> None:
    """Two trials, as the first was slow. The second brought it in: the first's client or failure doesn't undo that."""
    bench.half_open()
    assert bench.begin()
    bench.now += LEASE_MS
    assert bench.begin()
    bench.end(Outcome.SUCCESS, trial=True)
    assert not bench.end(Outcome.ABANDONED, trial=True)
    assert not bench.begin(), "still in"
    assert not bench.end(Outcome.FAILURE, trial=True)
    assert bench.usable()
    assert bench.fail(2) == [False, True], "it was one of three in a row"


@pytest.mark.parametrize("outcome", Outcome)
def test_trial_that_ends_after_another_failed_changes_nothing(bench: Bench, outcome: Outcome) -> None:
    """The second of two trials ejected it anew: how the first ends neither shortens nor lengthens that."""
    bench.half_open()
    assert bench.begin()
    bench.now += LEASE_MS
    assert bench.begin()
    assert bench.end(Outcome.FAILURE, trial=True)
    assert not bench.end(outcome, trial=True)
    assert bench.out_for() == 10_000


def test_late_failures_do_not_count(bench: Bench) -> None:
    """Attempts begun before the ejection end during it: they lengthen nothing, and count for nothing afterwards."""
    bench.rules = Ejection(consecutive_failures=10, min_requests=12, failure_rate=0.5, window_s=1000, base_s=5)
    assert bench.fail(10)[-1]
    assert bench.fail(30) == [False] * 30
    assert bench.out_for() == 5000
    bench.now += 5000
    assert bench.fail(30) == [False] * 30
    assert bench.begin()
    assert bench.fail(30) == [False] * 30
    assert not bench.usable(), "a late failure doesn't end the trial's lease"
    bench.end(Outcome.SUCCESS, trial=True)
    assert bench.fail(9) == [False] * 9


def test_late_success_does_not_bring_it_back(bench: Bench) -> None:
    """An attempt begun before the ejection succeeds during it: only the trial brings it back."""
    bench.fail(3)
    bench.end(Outcome.SUCCESS)
    assert not bench.usable()
    assert bench.out_for() == 5000


def test_being_healthy_ends_no_ejection(bench: Bench) -> None:
    """The health check and the ejection are reasons of their own."""
    bench.fail(3)
    bench.health.set_healthy(ID, healthy=False)
    bench.health.set_healthy(ID, healthy=True)
    assert not bench.usable()


def test_unhealthy_endpoints_count_towards_the_share_except_in_panic(bench: Bench) -> None:
    """One of two is unhealthy: the other one stays in, unless both are in use because the pool panics."""
    bench.peers = [ID, 4]
    bench.health.set_healthy(4, healthy=False)
    assert bench.fail(10) == [False] * 10
    bench.panic_threshold = 0.5
    assert bench.fail() == [False], "half are healthy: no panic"
    bench.health.set_healthy(ID, healthy=False)
    assert bench.fail() == [True]
    assert bench.fail(10, shared_id=4) == [False] * 10


def test_endpoint_that_nobody_hears_from_is_ejected(bench: Bench) -> None:
    """Its clients leave before the first byte, each after a long wait, and nobody is served meanwhile."""
    assert [bench.leave_after(0.5) for _ in range(3)] == [False, False, True]


def test_clients_that_leave_early_say_nothing(bench: Bench) -> None:
    """While nothing is known, half a second at least: a shorter patience is the client's."""
    assert not any(bench.leave_after(0.499) for _ in range(30))


def test_clients_that_leave_while_others_are_served_say_nothing(bench: Bench) -> None:
    """One long prompt after another loses its client, and meanwhile the endpoint serves somebody."""
    for _ in range(30):
        bench.health.served(ID)
        assert not bench.leave_after(5), "served in the same millisecond: nobody can say which was first"
    bench.now += 1
    assert [bench.leave_after(5) for _ in range(3)] == [False, False, True]


def test_wait_before_an_endpoint_is_contacted_says_nothing(bench: Bench) -> None:
    """The clients leave while its name is being looked up, however long that takes."""
    assert not any(bench.end_begun(0, Outcome.UNANSWERED) for _ in range(30))


@pytest.mark.parametrize("usual_s", [0.02, 0.3, 1.0, 20.0])
def test_wait_is_long_if_it_is_twice_the_usual(bench: Bench, usual_s: float) -> None:
    """A slow model needs patience: what counts is learned from the responses that came."""
    for _ in range(100):
        bench.end(Outcome.SUCCESS, first_byte_us=int(usual_s * 1e6))
    too_long = max(0.1, 2 * usual_s)
    assert not any(bench.leave_after(too_long - 0.01) for _ in range(30))
    assert [bench.leave_after(too_long + 0.01) for _ in range(3)] == [False, False, True]


def test_wait_is_not_long_where_times_differ_much(bench: Bench) -> None:
    """Short and long prompts by turns, 0.1 and 3 seconds: 5 seconds are not unusual."""
    for _ in range(100):
        bench.end(Outcome.SUCCESS, first_byte_us=100_000)
        bench.end(Outcome.SUCCESS, first_byte_us=3_000_000)
    assert not any(bench.leave_after(5) for _ in range(30))
    assert bench.leave_after(15) is False
    assert [bench.leave_after(15) for _ in range(2)] == [False, True]


def test_success_interrupts_a_row_of_clients_that_left(bench: Bench) -> None:
    """As with any other failure."""
    bench.rules = Ejection(consecutive_failures=3, min_requests=1000)
    for _ in range(10):
        assert [bench.leave_after(1) for _ in range(2)] == [False, False]
        bench.end(Outcome.SUCCESS)


def test_trial_that_hangs_until_its_client_leaves_has_failed(bench: Bench) -> None:
    """Or else the endpoint would be tried by one client after another; one that leaves early makes way as before."""
    bench.half_open()
    assert bench.begin()
    assert not bench.leave_after(0.1, trial=True)
    assert bench.begin()
    assert bench.leave_after(0.7, trial=True)
    assert bench.out_for() == 10_000


def test_reset_forgets_everything_of_one_id(bench: Bench) -> None:
    """A new endpoint with its id inherits nothing; its neighbours keep what they have."""
    bench.bring_back()
    bench.end(Outcome.SUCCESS, first_byte_us=20_000_000)
    bench.fail(3)
    bench.fail(3, shared_id=4)
    bench.health.set_healthy(ID, healthy=True)
    bench.health.set_healthy(ID, healthy=False)
    bench.health.served(ID)
    bench.records.reset(ID)
    assert bench.usable()
    assert not bench.health.is_known(ID)
    assert not bench.usable(4)
    bench.now += 1
    assert [bench.leave_after(1) for _ in range(3)] == [False, False, True]
    assert bench.out_for() == 5000
