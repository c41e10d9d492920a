"""Counting without prometheus-client's detours, beside its own methods: the same files, the same page.

Each scenario runs in a process of its own, where prometheus-client can be switched to files; see test_metrics.py.
"""

import gc
import os
import struct
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from app.observability.metric_cells import Count, Distribution
from app.observability.metrics import keep_files_per_slot

pytestmark = pytest.mark.slow

T = TypeVar("T")
Files = dict[str, dict[str, float]]

BOUNDS = (0.1, 1.0, 2.5, 10.0)
AMOUNTS = (
    *(0.1, 1.0, 2.5, 10.0),  # on a bound: it belongs to it
    *(0.0, -0.0, 0.05, -3.0, -1e300, 5e-324),  # below the least
    *(10.000000000000002, 11.0, 1e300),  # above the largest
    *(0.10000000000000002, 0.09999999999999999, 0.1 + 0.2, 2.4999999999999996, 7.0, 0.1, 0.1),
)


class Theirs:
    """prometheus-client's own ways."""

    def __init__(self, child: Any) -> None:
        self._child = child

    def inc(self) -> None:
        self._child.inc()

    def add(self, amount: float) -> None:
        self._child.inc(amount)

    def observe(self, amount: float) -> None:
        self._child.observe(amount)


class Page:
    """Two metrics of a process with a slot, which are counted in our way or theirs."""

    def __init__(self, folder: Path, ours: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.slot = 0
        keep_files_per_slot(folder, lambda: self.slot)
        own = CollectorRegistry()
        self.counter = Counter("c_total", "A counter.", ("name",), registry=own)
        self.histogram = Histogram("h", "A histogram.", ("name",), buckets=BOUNDS, registry=own)
        self.plain = Histogram("p", "A histogram without labels.", buckets=BOUNDS, registry=own)
        self._ours = ours

    def count(self, name: str = "x") -> Any:
        """A child of the counter."""
        child = self.counter.labels(name)
        return Count(child) if self._ours else Theirs(child)

    def distribution(self, name: str = "x") -> Any:
        """A child of the histogram."""
        child = self.histogram.labels(name)
        return Distribution(child) if self._ours else Theirs(child)

    def distribution_without_labels(self) -> Any:
        """The histogram that has no children."""
        return Distribution(self.plain) if self._ours else Theirs(self.plain)

    def in_child(self, work: Callable[[], object], slot: int = 1) -> None:
        """Fork a process with this slot that does the work."""
        pid = os.fork()
        if not pid:
            try:
                self.slot = slot
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed; see its traceback"

    def text(self) -> str:
        """What the collector shows of all files."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.folder))
        return generate_latest(registry).decode()

    def files(self) -> Files:
        """Every number in every file."""
        return {
            path.name: {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}
            for path in sorted(self.folder.iterdir())
        }


Seen = tuple[str, Files]
Scenario = Callable[[Page], None]


def _run(scenario: Scenario, folder: Path, ours: bool) -> Seen:
    page = Page(folder, ours)
    scenario(page)
    return page.text(), page.files()


def alone(work: Callable[..., T], *args: object) -> T:
    """Do it in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result(60)


def both(scenario: Scenario, folder: Path) -> tuple[Seen, Seen]:
    """What is seen after the scenario: in our way, and in prometheus-client's."""
    return alone(_run, scenario, folder / "ours", True), alone(_run, scenario, folder / "theirs", False)


def _counts(page: Page) -> None:
    one, other, never = page.count("one"), page.count("other"), page.count("never")
    for _ in range(5):
        one.inc()
    other.inc()
    other.add(41.5)
    assert never


def _bounds(page: Page) -> None:
    each, plain = page.distribution(), page.distribution("inf")
    for amount in AMOUNTS:
        each.observe(amount)
    for amount in (float("inf"), 1.0, float("inf"), 0.1):
        plain.observe(amount)


def _without_labels(page: Page) -> None:
    plain = page.distribution_without_labels()
    for amount in AMOUNTS:
        plain.observe(amount)


def _sums(page: Page) -> None:
    """Sums in the order in which they are made: floating point is not to differ by a bit."""
    each = page.distribution()
    for number in range(1000):
        each.observe(number * 0.1)


def _growth(page: Page) -> None:
    """The files outgrow their first 64 KiB while cells are bound, several times."""
    first, spread = page.count("first"), page.distribution("first")
    others = []
    for number in range(2000):
        first.inc()
        spread.observe(number * 0.01)
        others.append(page.count(f"{number}-" + "n" * 100))
        others[-1].inc()
        if number % 10 == 0:
            page.distribution(f"{number}-" + "n" * 100).observe(1.0)
    for other in others:
        other.inc()


def _fork(page: Page, tally: Callable[[], object]) -> None:
    """Parent, children and grandchildren count the same, before, in between and after."""
    tally()

    def work() -> None:
        for _ in range(3):
            tally()
        page.count("of the child").inc()
        page.in_child(tally, slot=3)
        tally()

    page.in_child(work, slot=1)
    tally()
    page.in_child(work, slot=2)
    tally()


def _fork_counter(page: Page) -> None:
    _fork(page, page.count().inc)


def _fork_histogram(page: Page) -> None:
    distribution = page.distribution()
    _fork(page, lambda: distribution.observe(5.0))


def _fork_unbound(page: Page) -> None:
    """What nobody counted before the fork."""
    count, spread = page.count(), page.distribution()
    for slot in (1, 2):
        page.in_child(lambda: (count.inc(), spread.observe(5.0), count.inc()), slot=slot)


def _successor(page: Page) -> None:
    """Whoever takes over a slot goes on where the last one stopped."""
    count, spread = page.count(), page.distribution()
    for _ in range(3):
        page.in_child(lambda: (count.inc(), count.inc(), spread.observe(5.0)), slot=1)


@pytest.mark.parametrize(
    "scenario",
    [_counts, _bounds, _without_labels, _sums, _growth, _fork_unbound, _successor],
    ids=lambda scenario: scenario.__name__.strip("_"),
)
def test_same_page_and_files_as_prometheus_clients(scenario: Scenario, tmp_path: Path) -> None:
    """The same counting in its way and in ours: the same page, and the same numbers in the same files."""
    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs
    assert ours[1], "something was counted"


@pytest.mark.parametrize("scenario", [_fork_counter, _fork_histogram], ids=lambda scenario: scenario.__name__)
def test_fork_after_counting(scenario: Scenario, tmp_path: Path) -> None:
    """A child counts in its own file, also with what its parent had counted in before; the parent's stays its own."""
    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs
    assert {"counter_1.db", "counter_2.db", "counter_3.db"} < ours[1].keys()


def test_totals_go_on_after_a_restart(tmp_path: Path) -> None:
    """New processes with the slot of an old one find its numbers and add to them."""
    seen = []
    for name, ours in (("ours", True), ("theirs", False)):
        seen.append([alone(_run, _counts, tmp_path / name, ours) for _ in range(3)])
    assert seen[0] == seen[1]
    assert 'c_total{name="one"} 15.0' in seen[0][-1][0]


def _counter_again(page: Page) -> None:
    for _ in range(3):
        page.count().inc()


def _histogram_again(page: Page) -> None:
    for amount in (0.5, 5.0, 5.0):
        page.distribution().observe(amount)


@pytest.mark.parametrize("scenario", [_counter_again, _histogram_again], ids=lambda scenario: scenario.__name__)
def test_child_that_is_bound_again_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    """A second Count of a child goes on where the first stopped: the caches of metrics.py drop the oldest."""
    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs


def _dropped(folder: Path) -> int:
    page = Page(folder, True)
    count, spread = page.count(), page.distribution()
    count.inc()
    spread.observe(1.0)
    del count, spread
    gc.collect()
    page.in_child(lambda: (page.count().inc(), page.distribution().observe(1.0)))
    return len(page.files())


def test_dropped_cells_hold_nothing(tmp_path: Path) -> None:
    """A Count that nobody has any more neither keeps a file open nor hinders a child."""
    assert alone(_dropped, tmp_path) == 4


def _kill(folder: Path) -> bytes:
    page = Page(folder, True)

    def work() -> None:
        count = page.count()
        for _ in range(7):
            count.inc()
        os.kill(os.getpid(), 9)

    with pytest.raises(AssertionError):
        page.in_child(work)
    return (folder / "counter_1.db").read_bytes()


def test_killed_process_has_counted(tmp_path: Path) -> None:
    """A number is in the file as soon as it is counted: a SIGKILL loses nothing, and leaves 8 whole bytes."""
    assert struct.pack("d", 7.0) in alone(_kill, tmp_path)
