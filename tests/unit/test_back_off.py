"""Backing off: for how long an endpoint is left alone after it refused a request, and by which model."""

from collections.abc import Iterator

import pytest

from app.routing import back_off
from app.routing.back_off import BackOffs, pair
from tests.support.forks import Parent

AT = pair(3, 7)
NEIGHBOURS = [pair(3, 6), pair(3, 8), pair(2, 7), pair(4, 7)]


class Bench:
    """BackOffs and a clock that goes only when told."""

    def __init__(self, back_offs: BackOffs) -> None:
        self.back_offs = back_offs
        self.now = 50_000_000

    def left_ms(self, at: int = AT) -> int:
        return max(0, self.back_offs.until_ms[at] - self.now)

    def refuse(self, retry_after_s: int | None = None) -> int:
        """Returns for how long the pair backs off now."""
        self.back_offs.refused(AT, retry_after_s)
        return self.left_ms()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """BackOffs in which nobody backs off, and their clock."""
    parent = Parent(limit=1)
    bench = Bench(BackOffs(parent.table))
    monkeypatch.setattr(back_off, "now_ms", lambda: bench.now)
    yield bench
    parent.close()


@pytest.mark.parametrize(("seconds", "granted_ms"), [(1, 1000), (60, 60_000), (61, 60_000), (10**9, 60_000)])
def test_pause_that_is_asked_for_is_granted_up_to_a_minute(bench: Bench, seconds: int, granted_ms: int) -> None:
    """And it concerns that endpoint and that model only."""
    assert bench.refuse(seconds) == granted_ms
    assert [bench.left_ms(at) for at in NEIGHBOURS] == [0] * 4


def test_shorter_pause_does_not_end_a_longer_one(bench: Bench) -> None:
    """Two requests were refused at once, with 20 and 1 seconds."""
    bench.refuse(20)
    assert bench.refuse(1) == 20_000
    assert bench.refuse() == 20_000
    assert bench.refuse(30) == 30_000


@pytest.mark.parametrize("given", [None, 0])
def test_refusals_without_a_time_make_cool_downs_that_grow(bench: Bench, given: int | None) -> None:
    """100 ms, 200 ms, and so on up to 5 s, however often; the first length again after a success."""
    lasted = []
    for _ in range(100):
        lasted.append(bench.refuse(given))
        bench.now += lasted[-1]
    assert lasted[:7] == [100, 200, 400, 800, 1600, 3200, 5000]
    assert set(lasted[6:]) == {5000}
    bench.back_offs.served(AT)
    assert bench.refuse(given) == 100


def test_refusals_during_a_cool_down_do_not_lengthen_it(bench: Bench) -> None:
    """Fifty requests were in progress and all are refused: that is one refusal, not fifty in a row."""
    assert {bench.refuse() for _ in range(50)} == {100}
    bench.now += 100
    assert bench.refuse() == 200


def test_reset_forgets_the_back_offs_of_an_endpoint(bench: Bench) -> None:
    """A new endpoint with its id inherits nothing; others keep what they have."""
    for at in (AT, *NEIGHBOURS):
        bench.back_offs.refused(at, None)
        bench.back_offs.refused(at, 20)
    bench.back_offs.reset(3)
    assert [bench.left_ms(at) for at in (AT, *NEIGHBOURS)] == [0, 0, 0, 20_000, 20_000]
    assert bench.refuse() == 100
