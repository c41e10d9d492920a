"""Backing off: for how long an endpoint is left alone after it refused a request, and by which model."""

import os
from collections.abc import Iterator

import pytest

from app.routing import back_off
from app.routing.back_off import REFUSALS_COUNT_MS, BackOffs, pair
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import SharedTable
from tests.support.stopped_clock import BEGIN_MS, under_stopped_clock

AT = pair(3, 7)
NEIGHBOURS = [pair(3, 6), pair(3, 8), pair(2, 7), pair(4, 7)]


class Bench:
    """BackOffs and a clock that goes only when told."""

    def __init__(self, table: SharedTable) -> None:
        self.fd = table._fd
        self.back_offs = BackOffs(table)
        self.now = BEGIN_MS

    def left_ms(self, at: int = AT) -> int:
        return max(0, self.back_offs.until_ms[at] - self.now)

    def refuse(self, retry_after_s: int | None = None) -> int:
        """Returns for how long the pair backs off now."""
        self.back_offs.refused(AT, retry_after_s)
        return self.left_ms()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """BackOffs in which nobody backs off, and their clock."""
    with under_stopped_clock(Bench, monkeypatch, back_off) as bench:
        yield bench


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


@pytest.mark.parametrize("given", [None, 0])
@pytest.mark.parametrize(("pause_ms", "next_ms"), [(REFUSALS_COUNT_MS - 1, 800), (REFUSALS_COUNT_MS, 100)])
def test_refusals_of_long_ago_do_not_count(bench: Bench, given: int | None, pause_ms: int, next_ms: int) -> None:
    """Without a request in between that would succeed: a minute after the last cool-down, the next one is a first."""
    for _ in range(3):
        bench.now += bench.refuse(given)
    bench.now += pause_ms
    assert bench.refuse(given) == next_ms


def test_reset_forgets_the_back_offs_of_a_model(bench: Bench) -> None:
    """A new model with its id inherits nothing at any endpoint; other models keep what they have."""
    for at in (AT, *NEIGHBOURS):
        bench.back_offs.refused(at, None)
        bench.back_offs.refused(at, 20)
    bench.back_offs.reset(7)
    assert [bench.left_ms(at) for at in (AT, *NEIGHBOURS)] == [0, 20_000, 20_000, 0, 0]
    assert bench.refuse() == 100


def test_reset_looks_at_no_page_that_was_never_written(bench: Bench) -> None:
    """The state of all pairs would be 4 MiB. Only the rows of endpoints that refused anything take memory."""
    bench.back_offs.refused(AT, 1)
    before = os.fstat(bench.fd).st_blocks
    for shared_id in range(MAX_IDS):
        bench.back_offs.reset(shared_id)
    assert os.fstat(bench.fd).st_blocks <= before + 4 * 8, "a row of either array lies in two pages"


def test_reset_forgets_the_back_offs_of_an_endpoint(bench: Bench) -> None:
    """A new endpoint with its id inherits nothing; others keep what they have."""
    for at in (AT, *NEIGHBOURS):
        bench.back_offs.refused(at, None)
        bench.back_offs.refused(at, 20)
    bench.back_offs.reset(3)
    assert [bench.left_ms(at) for at in (AT, *NEIGHBOURS)] == [0, 0, 0, 20_000, 20_000]
    assert bench.refuse() == 100
