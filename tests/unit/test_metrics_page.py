"""The page of `/metrics` beside the one that prometheus-client makes of the same files: equal, in shorter turns."""

import gc
import os
import socket
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from gevent import get_hub
from gevent.socket import wait_read
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.utils import floatToGoString
from structlog.testing import capture_logs

from app.observability import turns
from app.observability.endpoint_gauges import EndpointState
from app.observability.metric_series import Series
from app.observability.metric_text import Lines
from app.observability.metric_totals import Run
from app.observability.metrics import Metrics, SharedState
from app.observability.model_gauges import ModelState
from tests.bench.scrape import Cost, Workers, measure
from tests.support.metric_pages import library_page

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ACCEPTED = (
    "",
    OPENMETRICS,
    "text/plain; version=1.0.0; escaping=allow-utf-8",
    "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
    "application/openmetrics-text; version=1.0.0; escaping=dots",
    "application/openmetrics-text; version=2.0.0; escaping=values",
)
BOUNDS = (0.1, 1.0, 2.5, 2_500_000.0, float("inf"))
NAMES = ("one", "another", "/a b", 'quo"te', "back\\slash", "line\nbreak", "%s %(label)s %%", "é ☃ 😀", "\0label\0", "")


class Folder:
    """Metrics files, written with prometheus-client's own code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.metrics = Metrics(path)
        self.state = state("http://a:1", 'http://b:2/"')

    def count(self, slot: object, *names: str, value: float = 1.0) -> None:
        """Add to a counter under these names."""
        with Writer(self.path / f"counter_{slot}.db") as file:
            for name in names:
                file.add("c", "c_total", {"label": name}, value)

    def observe(self, slot: object, *names: str, value: float = 0.3, bounds: Iterable[float] = BOUNDS) -> None:
        """Add to the sum and to each of these buckets of a histogram, under these names."""
        with Writer(self.path / f"histogram_{slot}.db") as file:
            for name in names:
                file.add("h", "h_sum", {"label": name}, value)
                for number, bound in enumerate(bounds):
                    file.add("h", "h_bucket", {"label": name, "le": floatToGoString(bound)}, float(number))

    def page(self, accept: str = "") -> bytes:
        """Returns the router's page."""
        return b"".join(self.metrics.page(self.state, accept)[0])

    def check(self, *accepted: str) -> None:
        """The router's page is the library's, from what is kept and from scratch."""
        for accept in accepted or ("", OPENMETRICS):
            expected = library_page(self.path, self.state, accept)
            assert self.page(accept) == expected
            assert b"".join(Metrics(self.path).page(self.state, accept)[0]) == expected


class Writer:
    """A file that is open for writing."""

    def __init__(self, path: Path, about: str = "Help: \\ \"quoted\"\nand 'more'.") -> None:
        self._file = MmapedDict(str(path))
        self._about = about

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, family: str, name: str, labels: dict[str, str], value: float) -> None:
        """Add to a number."""
        key = mmap_key(family, name, list(labels), list(labels.values()), self._about)
        before, _ = self._file.read_value(key)
        self._file.write_value(key, before + value, 0.0)


def state(*urls: str) -> SharedState:
    """Returns a state with these endpoints, and a model for each."""
    models = [
        ModelState(f"model of {url}", index, 2, 3, 4, index + 0.5, index % 2 == 0) for index, url in enumerate(urls)
    ]
    endpoints = [EndpointState(url, 5, index % 2 == 0) for index, url in enumerate(urls)]
    return SharedState(3, 2, 10, 2, 1, 7, endpoints, models)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Files of two workers with everything."""
    folder = Folder(tmp_path / "metrics")
    folder.count(0, *NAMES)
    folder.observe(0, *NAMES)
    folder.count(1, *reversed(NAMES), "new", value=0.1)
    folder.observe(1, "new", *reversed(NAMES), value=1e7)
    return folder


@pytest.mark.parametrize("accept", ACCEPTED)
def test_page_is_prometheus_clients(folder: Folder, accept: str) -> None:
    """Byte for byte, in every format, at the first scrape and at later ones that find other numbers."""
    folder.check(accept)
    folder.count(0, "one", value=1_234_567.0)
    folder.observe(1, "one", value=float("inf"))
    folder.check(accept)


def test_formats_may_alternate(folder: Folder) -> None:
    """What is kept of one format is not written in another."""
    for _ in range(2):
        folder.check(*ACCEPTED)


texts = st.text(max_size=20)
numbers = st.floats(allow_nan=True, allow_infinity=True)


@pytest.mark.slow
@given(st.dictionaries(texts, st.tuples(numbers, numbers), max_size=5), texts, texts)
@example({"%%s\\": (float("nan"), -0.0)}, "%", "\\n\r\u2028")
@effort(max_examples=60)
def test_any_text_and_number_is_written_as_by_prometheus_client(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, tuple[float, float]], about: str, url: str
) -> None:
    """Label values, help texts and numbers of all kinds."""
    folder = Folder(tmp_path_factory.mktemp("any"))
    for slot in range(2):
        with Writer(folder.path / f"counter_{slot}.db", about) as file:
            for name, (value, _) in values.items():
                file.add("c", "c_total", {"label": name, "b": name}, value)
        with Writer(folder.path / f"histogram_{slot}.db", about) as file:
            for name, (total, count) in values.items():
                file.add("h", "h_sum", {"label": name}, total)
                file.add("h", "h_bucket", {"label": name, "le": "+Inf"}, count)
    folder.state = state(url)
    folder.check()


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def empty(path: Path) -> None:
    """Empty it in place."""
    path.write_bytes(b"")


def clear(path: Path) -> None:
    """Say in its head that nothing is used."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    """Write it again in place: keys of the same lengths at the same places, but others."""
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"uno"').replace(b'"new"', b'"one"'))


def shorten(path: Path) -> None:
    """Write it again in place, with the first names only."""
    path.write_bytes(b"")
    with Writer(path) as file:
        if path.name.startswith("counter"):
            file.add("c", "c_total", {"label": "one"}, 4.0)
        else:
            file.add("h", "h_bucket", {"label": "one", "le": "+Inf"}, 4.0)


def replace(path: Path) -> None:
    """Put another file in its place."""
    path.unlink()
    shorten(path)


def rename(path: Path) -> None:
    """Give its numbers to another slot."""
    path.rename(path.with_name(path.name.replace("_1", "_2")))


@pytest.mark.parametrize("change", [remove, empty, clear, swap, shorten, replace, rename], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["counter_1.db", "histogram_1.db"])
def test_files_may_change_between_scrapes(folder: Folder, name: str, change: Callable[[Path], None]) -> None:
    """A page shows what is in the files now, whatever was in them before."""
    folder.check()
    change(folder.path / name)
    folder.check()
    folder.count(1, "later")
    folder.observe(1, "later")
    folder.check()


@pytest.mark.slow
def test_files_may_grow_between_scrapes(folder: Folder) -> None:
    """What was appended is on the next page, also in files over a megabyte and in series longer than a piece."""
    folder.check()
    for number in range(3):
        names = [f"{number}-{index}-" + "n" * 100 for index in range(400)]
        folder.count(0, *names)
        folder.observe(1, *names)
        folder.observe(0, f"{number}" * 60_000)
        folder.check()


def test_series_is_read_at_once(tmp_path: Path) -> None:
    """Wherever the pieces of a file end, the numbers of a series are read together, and their keys are kept once."""
    others = alive(Run)
    folder = Folder(tmp_path / "metrics")
    names = [f"{number}-" + "n" * (number % 97) for number in range(500)]
    folder.observe(0, *names)
    folder.observe(1, *names[::-1])
    for _ in range(2):
        folder.page()
        assert len(alive(Run)) - len(others) == len(names)


def test_series_may_be_split(folder: Folder) -> None:
    """Numbers of a series that were not made together are one series: here a worker was killed between two of them."""
    folder.observe(2, "split", bounds=BOUNDS[:2])
    folder.count(2, "other")
    folder.check()
    folder.observe(2, "in between")
    folder.observe(2, "split")
    folder.observe(3, "split")
    folder.check()
    folder.observe(4, "split", bounds=reversed(BOUNDS))
    folder.check()


def test_number_counts_once_it_is_used(folder: Folder) -> None:
    """A number is appended first and declared used afterwards. In between a page is the one of before."""
    folder.check()
    before = folder.page()
    path = folder.path / "histogram_0.db"
    head = path.read_bytes()[:8]
    folder.observe(0, "being made")
    whole = path.read_bytes()
    path.write_bytes(head + whole[8:])
    assert folder.page() == before
    folder.check()


@pytest.mark.slow
def test_every_prefix_of_a_file_is_a_page(folder: Folder) -> None:
    """A scrape may see a series of which only the first numbers were appended, for the first time or again."""
    path = folder.path / "histogram_0.db"
    before = path.read_bytes()
    folder.observe(0, "being made")
    whole = path.read_bytes()
    ends = [struct.unpack_from("i", content)[0] for content in (before, whole)]
    key = ends[0]
    for _ in range(len(BOUNDS) + 1):
        key += (struct.unpack_from("i", whole, key)[0] + 4) // 8 * 8 + 24  # with its length, padding and number
        path.write_bytes(struct.pack("ii", key, 0) + whole[8:])
        folder.check()
    assert key == ends[1]
    path.write_bytes(before)
    folder.check()


def test_file_that_is_gone_when_it_is_opened_is_left_out(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be removed after the folder was listed."""
    listed = os.listdir(folder.path)
    monkeypatch.setattr(os, "listdir", lambda _: listed)
    (folder.path / "counter_1.db").unlink()
    folder.check()


@pytest.mark.parametrize("size", [0, 1, 4, 8, 100])
def test_file_that_was_just_made_is_empty(folder: Folder, size: int) -> None:
    """A file has no size at first, and then no head."""
    before = folder.page()
    (folder.path / "counter_7.db").write_bytes(bytes(size))
    assert folder.page() == before


@pytest.mark.parametrize(
    "rest",
    [b"", b"\0" * 64, b"\xff" * 64, struct.pack("i", 12) + b"no JSON here    " + bytes(16), b"\x10\0\0\0[1,2,3]"],
    ids=["missing", "zeros", "ones", "no JSON", "too short"],
)
def test_corrupt_file_hides_nothing_else(folder: Folder, rest: bytes) -> None:
    """What comes before the damage is shown, and so are the other files. One line of the log says what is missing."""
    expected = folder.page()
    path = folder.path / "counter_1.db"
    content = path.read_bytes()
    (used,) = struct.unpack_from("i", content)
    path.write_bytes(struct.pack("ii", used + 64, 0) + content[8:used] + rest)
    with capture_logs() as events:
        for _ in range(3):
            assert folder.page() == expected
    (event,) = events
    assert (event["log_level"], event["file"]) == ("error", "counter_1.db")


def alive(*kinds: type) -> list[object]:
    """Returns the objects of these types, those of other tests too. Whoever keeps the list keeps them alive."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


@pytest.mark.slow
def test_what_is_kept_is_bounded(folder: Folder) -> None:
    """Files, endpoints and formats may change for ever: only what is there now is kept."""
    others = alive(Run, Series, Lines)
    for number in range(30):
        for path in folder.path.iterdir():
            path.unlink()
        folder.count(0, *(f"{number}-{index}" for index in range(20)))
        folder.observe(0, *(f"{number}-{index}" for index in range(20)))
        folder.state = state(*(f"http://{number}-{index}" for index in range(20)))
        for accept in ("", OPENMETRICS, f"application/openmetrics-text; version=1.{number}"):
            folder.page(accept)
    series = 40
    assert len(alive(Run, Series, Lines)) - len(others) <= 3 * series + (3 + 6) * 20
    assert alive_templates() <= 2


def alive_templates() -> int:
    """Returns the largest number of formats for which a series has a template."""
    return max(len(each._templates) for each in gc.get_objects() if isinstance(each, Lines))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a turn end wherever it may."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: next(clock)))


@pytest.mark.usefixtures("impatient")
def test_turn_ends_after_every_series(folder: Folder) -> None:
    """The event loop may run after each series that was read, and after each that was written: no turn grows with N."""
    cycles: list[None] = []
    after_poll = get_hub().loop.check(ref=False)
    after_poll.start(lambda: cycles.append(None))
    endpoints = [f"http://{number}" for number in range(50)]
    folder.state = state(*endpoints)
    page = gevent.spawn(folder.page).get(timeout=20)
    after_poll.close()
    read, written = 2 * 2 * len(NAMES) + 2, 2 * (len(NAMES) + 1) + 2 * len(endpoints)
    assert len(cycles) >= read + written
    assert page == library_page(folder.path, folder.state, "")


@pytest.mark.usefixtures("impatient")
def test_sockets_are_served_while_a_page_is_made(folder: Folder) -> None:
    """Between two turns the loop polls: a client is answered, and its next request too, before the page is ready."""
    client, server = socket.socketpair()
    exchanges = []

    def serve() -> None:
        while True:
            wait_read(server.fileno())
            server.send(server.recv(1))

    def ask() -> None:
        while True:
            client.send(b".")
            wait_read(client.fileno())
            exchanges.append(client.recv(1))

    others = [gevent.spawn(serve), gevent.spawn(ask)]
    gevent.spawn(folder.page).get(timeout=20)
    gevent.killall(others)
    client.close()
    server.close()
    assert len(exchanges) > 10


@pytest.mark.usefixtures("impatient")
def test_scrapes_at_the_same_time_return_the_same(folder: Folder) -> None:
    """Scrapes that overlap disturb neither one another nor what is kept, in whichever format."""
    expected = {accept: library_page(folder.path, folder.state, accept) for accept in ("", OPENMETRICS)}
    for _ in range(2):
        pages = {accept: [gevent.spawn(folder.page, accept) for _ in range(3)] for accept in expected}
        for accept, scrapes in pages.items():
            assert [scrape.get(timeout=20) for scrape in scrapes] == [expected[accept]] * 3
    folder.check()


@pytest.mark.usefixtures("impatient")
def test_scrapes_that_see_different_files_share_no_mistake(folder: Folder) -> None:
    """A series that is made in two parts while one scrape is under way is one series to the next scrape."""
    folder.observe(1, *(f"many-{number}" for number in range(100)))
    before = library_page(folder.path, folder.state, "")
    first = gevent.spawn(folder.page)
    for _ in range(2 * 2 * len(NAMES) + 20):
        gevent.sleep(1e-9)  # it has read the other files, and a part of this one
    folder.observe(0, "new in parts", bounds=BOUNDS[:2])
    folder.observe(1, "new in parts")
    second = gevent.spawn(folder.page)
    assert first.get(timeout=20) == before
    assert second.get(timeout=20) == library_page(folder.path, folder.state, "")


@pytest.mark.usefixtures("impatient")
def test_scrape_that_is_stopped_leaves_nothing_behind(folder: Folder) -> None:
    """Whenever a scrape is stopped, the next one is made, and right."""
    for cycles in range(0, 120, 7):
        scrape = gevent.spawn(folder.page)
        for _ in range(cycles):
            gevent.sleep(1e-9)
        scrape.kill()
        assert folder.page() == library_page(folder.path, folder.state, "")


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_files_may_change_under_a_scrape(folder: Folder) -> None:
    """Files are emptied, removed and written in the middle of scrapes: each ends, and the next one is right."""
    changes = [swap, shorten, remove, clear, empty]
    for cycles in range(0, 60, 4):
        scrape = gevent.spawn(folder.page)
        for _ in range(cycles):
            gevent.sleep(1e-9)
        path = folder.path / ("histogram_0.db", "counter_0.db")[cycles % 8 // 4]
        changes[cycles % len(changes)](path)
        scrape.get(timeout=20)
        folder.count(0, *NAMES)
        folder.observe(0, *NAMES)
        folder.check()


def test_openmetrics_page_is_valid(folder: Folder) -> None:
    """The library's strict parser reads it: each family once and together, buckets in order, `_count` as `+Inf`."""
    os.truncate(folder.path / "counter_1.db", 0)
    families = {family.name: family for family in parse_openmetrics(folder.page(OPENMETRICS).decode())}
    histogram = families["h"]
    counts = {s.labels["label"]: s.value for s in histogram.samples if s.name == "h_count"}
    last = {s.labels["label"]: s.value for s in histogram.samples if s.labels.get("le") == "+Inf"}
    assert counts == last
    assert set(counts) == {*NAMES, "new"}


def _costs(folder: Path) -> dict[str, list[Cost]]:
    workers = Workers(folder, models=150, endpoints=300, workers=2)
    workers.count(0.1)
    return measure(folder, workers, rounds=3)


@pytest.mark.slow
@pytest.mark.alone
def test_page_costs_half_of_prometheus_clients_and_makes_short_turns(tmp_path: Path) -> None:
    """With 150 models and 300 endpoints: half at a worker's first page, a quarter later. CPU times, all of one run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        costs = pool.submit(_costs, tmp_path).result(120)
    least = {way: Cost(*map(min, zip(*each, strict=True))) for way, each in costs.items()}
    theirs = least["prometheus-client"]
    for way, share in (("router", 1 / 4), ("router, first", 1 / 2)):
        assert least[way].cpu_ms < theirs.cpu_ms * share, way
        assert least[way].turn_ms < theirs.turn_ms / 20, way
