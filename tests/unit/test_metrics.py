"""The metrics page over worker lives and deaths. Each scenario in a process of its own, which forks as gunicorn does.

The scenarios are the functions with an underscore: they run in that process and answer what they saw.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pytest
from falcon import testing
from msgspec import UNSET, Raw, UnsetType
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample
from structlog.testing import capture_logs

from app.admission.permit import Permit
from app.bootstrap import shared_state
from app.errors import ClientGone
from app.protocols.calls import Inference
from tests.support.forks import acquire
from tests.support.local_router import HookedWorker, LocalRouter
from tests.support.registry import OneModel, TestModel, application_over

pytestmark = pytest.mark.slow

T = TypeVar("T")
Samples = dict[str, float]

GOOD = b'{"prompt":"hello"}'
REQUESTS = 'router_requests_total{code="%d",model="m",route="/infer"}'
REJECTIONS = 'router_rejected_requests_total{reason="%s"}'

FAMILIES = {
    "router_requests": "counter",
    "router_rejected_requests": "counter",
    "router_permits_reclaimed": "counter",
    "router_retries": "counter",
    "router_routes_reloads": "counter",
    "router_keys_reloads": "counter",
    "router_jwks_refreshes": "counter",
    "router_unauthorized_requests": "counter",
    "router_trace_spans": "counter",
    "router_tls_handshake_failures": "counter",
    "router_tls_reloads": "counter",
    "router_endpoint_inflight": "gauge",
    "router_endpoint_up": "gauge",
    "router_endpoint_draining": "gauge",
    "router_request_duration_seconds": "histogram",
    "router_queue_wait_seconds": "histogram",
    "router_model_duration_seconds": "histogram",
    "router_overhead_seconds": "histogram",
    "router_inflight_requests": "gauge",
    "router_queued_requests": "gauge",
    "router_max_concurrency": "gauge",
    "router_workers": "gauge",
    "router_build_info": "gauge",
    "router_metric_files_in_memory": "gauge",
    "router_routes_stale": "gauge",
}


class Server(TestModel):
    """A server without gunicorn: its hooks are called as gunicorn calls them, around real forks."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder / "metrics"
        self.name = "m"
        local = LocalRouter(folder, MODEL_REF="m", **environ)
        self.router, self.hooks = local.router, local.hooks
        self.raises: BaseException | None = None
        self._app = application_over(self.router, OneModel(self))

    def infer(self, request: Inference) -> Raw | UnsetType:
        """A `Model`."""
        if self.raises is not None:
            raise self.raises
        return UNSET

    def ask(self, method: str = "POST", path: str = "/infer", body: bytes = GOOD, accept: str = "") -> testing.Result:
        """A request, as a WSGI server hands it over."""
        return testing.simulate_request(self._app, method, path, body=body, headers={"Accept": accept})

    def start_worker(self, work: Callable[["Server"], object]) -> "Worker":
        """Fork a worker that does this and is SIGKILLed then."""
        worker = HookedWorker(0)
        self.hooks.pre_fork(None, worker)  # type: ignore[arg-type]  # the hooks use nothing else of either
        worker.pid = os.fork()
        if not worker.pid:
            try:
                self.hooks.post_fork(None, worker)  # type: ignore[arg-type]
                self.hooks.post_worker_init(worker)  # type: ignore[arg-type]
                with capture_logs():
                    work(self)
                os.kill(os.getpid(), signal.SIGKILL)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        return Worker(self, worker)

    def run_worker(self, work: Callable[["Server"], object]) -> None:
        """A worker's whole life."""
        self.start_worker(work).reap()

    def samples(self) -> Samples:
        """The page's samples by name and labels, as another process of the server shows them."""
        page, _ = self.page("")
        return {_written(sample): sample.value for family in parse_text(page.decode()) for sample in family.samples}

    def page(self, accept: str) -> tuple[bytes, str]:
        """The page, as another process of the server shows it."""
        router = self.router
        state = shared_state(router.limiter, router.slots, router.metric_files, OneModel(self))
        pieces, content_type = router.metrics.page(state, accept)
        return b"".join(pieces), content_type

    def files(self) -> list[str]:
        """The names of the files of the metrics."""
        return sorted(path.name for path in self.folder.iterdir())


def _written(sample: Sample) -> str:
    """A sample's name and labels as the page has them, labels in order."""
    labels = ",".join(f'{name}="{text}"' for name, text in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else sample.name


class Worker:
    """A forked worker, seen by its parent."""

    def __init__(self, server: Server, worker: HookedWorker) -> None:
        self._server = server
        self._worker = worker

    def wait(self) -> None:
        """Until it was killed; nobody has taken back yet what it held."""
        _, status = os.waitpid(self._worker.pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the worker failed; see its traceback"

    def reclaim(self) -> None:
        """What the arbiter does when it has reaped a worker."""
        self._server.hooks.child_exit(None, self._worker)  # type: ignore[arg-type]

    def reap(self) -> None:
        """Both."""
        self.wait()
        self.reclaim()


def alone(scenario: Callable[[Path], T], folder: Path) -> T:
    """Run the scenario in a new process, where prometheus-client can be switched to files."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(scenario, folder).result(60)


def one_request(server: Server) -> None:
    """Something of every metric."""
    assert server.ask().status_code == 200


def every_outcome(server: Server) -> None:
    """Requests that end in every way: 3 good, 1 bad, 1 refused, 1 that fails, 1 whose client leaves; and probes."""
    for _ in range(3):
        assert server.ask().status_code == 200
    assert server.ask(body=b"nonsense").status_code == 400
    held = acquire(server.router.limiter)
    assert server.ask().status_code == 429
    held.release()
    server.raises = RuntimeError()
    assert server.ask().status_code == 500
    server.raises = ClientGone()
    with pytest.raises(ClientGone):
        server.ask()
    server.raises = None
    for path in ("/healthz", "/readyz", "/metrics", "/nowhere"):
        server.ask("GET", path)


def _count_every_outcome(folder: Path) -> Samples:
    server = Server(folder, MAX_CONCURRENCY="1")
    server.run_worker(every_outcome)
    return server.samples()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The page after requests that ended in every way."""
    return alone(_count_every_outcome, tmp_path_factory.mktemp("outcomes"))


def test_requests_are_counted_by_their_status(outcomes: Samples) -> None:
    """Every inference request is counted once, under the status it got; probes, scrapes and stray paths are not."""
    counted = {name: count for name, count in outcomes.items() if name.startswith("router_requests_total")}
    bad = (REQUESTS % 400).replace('model="m"', 'model=""')  # nobody knows which model it would have asked for
    assert counted == {REQUESTS % 200: 3, bad: 1, REQUESTS % 429: 1, REQUESTS % 500: 1, REQUESTS % 499: 1}


def test_refusals_are_counted_by_their_reason(outcomes: Samples) -> None:
    """Refusals stand under their reason, and a reason that never came up is 0, not missing."""
    counted = {name: count for name, count in outcomes.items() if name.startswith("router_rejected")}
    assert counted == {
        REJECTIONS % "limit_reached": 1,
        REJECTIONS % "model_limit_reached": 0,
        REJECTIONS % "queue_full": 0,
        REJECTIONS % "queue_timeout": 0,
        REJECTIONS % "tenant_limit_reached": 0,
    }


@pytest.mark.parametrize(
    ("histogram", "labels", "count"),
    [
        ("router_request_duration_seconds", '{model="m",route="/infer"}', 6),
        ("router_request_duration_seconds", '{model="",route="/infer"}', 1),
        ("router_overhead_seconds", "", 7),
        ("router_queue_wait_seconds", "", 5),  # those that were admitted
        ("router_model_duration_seconds", '{model="m"}', 5),
    ],
)
def test_durations_are_counted_where_they_were_spent(
    histogram: str, labels: str, count: int, outcomes: Samples
) -> None:
    """Rejected and bad requests spent no time in the model, nor waiting for a permit that they got."""
    assert outcomes[f"{histogram}_count{labels}"] == count
    assert outcomes[f"{histogram}_sum{labels}"] > 0
    last = labels.removesuffix("}").replace("{", "").split(",") if labels else []
    everything = ",".join(sorted([*last, 'le="+Inf"']))
    assert outcomes[f"{histogram}_bucket{{{everything}}}"] == count


def _families(folder: Path) -> dict[str, dict[str, str]]:
    server = Server(folder)
    server.run_worker(one_request)
    types = {}
    for accept, parse in (("", parse_text), ("application/openmetrics-text", parse_openmetrics)):
        page, _ = server.page(accept)
        types[accept] = {family.name: family.type for family in parse(page.decode())}
    return types


def test_page_holds_these_families(tmp_path: Path) -> None:
    """Names and types of the metrics are an interface: dashboards and alerts hold them."""
    types = alone(_families, tmp_path)
    assert types == {"": FAMILIES, "application/openmetrics-text": FAMILIES}


def _content_types(folder: Path) -> dict[str, tuple[int, str, bool]]:
    server = Server(folder)
    answers = {accept: server.ask("GET", "/metrics", accept=accept) for accept in ACCEPTED}
    return {
        accept: (answer.status_code, answer.headers["content-type"], answer.text.endswith("# EOF\n"))
        for accept, answer in answers.items()
    }


TEXT, OPENMETRICS = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"
ACCEPTED = {
    "": TEXT,
    "*/*": TEXT,
    "text/html,*/*;q=0.8": TEXT,
    "text/plain;version=0.0.4": TEXT,
    "application/openmetrics-text": OPENMETRICS,
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2": OPENMETRICS,
    "application/openmetrics-text;version=0.0.1,text/plain": TEXT,
    'application/openmetrics-text;version="1.0.0"': "",  # either will do, but no error
    "application/openmetrics-text;version=latest": "",
    "text/plain;version=latest": "",
}


@pytest.fixture(scope="module")
def content_types(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """Status, content type, and whether OpenMetrics' last line is there, by Accept."""
    return alone(_content_types, tmp_path_factory.mktemp("types"))


@pytest.mark.parametrize("accept", ACCEPTED)
def test_page_is_in_the_format_that_is_asked_for(accept: str, content_types: dict[str, tuple[int, str, bool]]) -> None:
    """OpenMetrics for a scraper that names it, else the text format, and never an error."""
    status, content_type, has_end = content_types[accept]
    assert status == 200
    assert content_type.startswith(ACCEPTED[accept])
    assert has_end == content_type.startswith("application/openmetrics-text")


def _successor_goes_on(folder: Path) -> list[float]:
    server = Server(folder, MAX_CONCURRENCY="1")
    counts = []
    for _ in range(3):
        server.run_worker(every_outcome)
        counts.append(server.samples()[REQUESTS % 200])
    return counts


def test_successor_goes_on_counting_after_a_kill(tmp_path: Path) -> None:
    """Counters never go back: whoever takes a dead worker's slot goes on where it was killed."""
    assert alone(_successor_goes_on, tmp_path) == [3, 6, 9]


def _workers_add_up(folder: Path) -> tuple[Samples, list[str]]:
    server = Server(folder)
    workers = [server.start_worker(one_request) for _ in range(3)]
    for worker in workers:
        worker.wait()
    samples = server.samples()
    for worker in workers:
        worker.reclaim()
    return samples, server.files()


def test_workers_add_up(tmp_path: Path) -> None:
    """The page is the sum over all workers, each with files of its own slot."""
    samples, files = alone(_workers_add_up, tmp_path)
    assert samples[REQUESTS % 200] == 3
    assert {f"counter_{slot}.db" for slot in range(3)} < set(files)


def _restart_often(folder: Path) -> list[tuple[list[str], list[str]]]:
    server = Server(folder, MAX_CONCURRENCY="1")
    seen = []
    for _ in range(21):
        server.run_worker(every_outcome)
        seen.append((server.files(), sorted(server.samples())))
    return seen


def test_restarts_add_neither_files_nor_series(tmp_path: Path) -> None:
    """20 restarts leave as many files and series as there were: a server that crashes for a year fills no disk."""
    first, *others = alone(_restart_often, tmp_path)
    assert first[0]
    assert len(others) == 20
    assert all(later == first for later in others)


def _gauges(folder: Path) -> list[tuple[float, ...]]:
    server = Server(folder, MAX_CONCURRENCY="3")
    permits: list[Permit] = []
    ready, go = os.pipe(), os.pipe()

    def hold_two(server: Server) -> None:
        permits.extend(acquire(server.router.limiter) for _ in range(2))
        os.write(ready[1], b".")
        os.read(go[0], 1)

    def gauges() -> tuple[float, ...]:
        samples = server.samples()
        names = ("inflight_requests", "queued_requests", "max_concurrency", "workers", "permits_reclaimed_total")
        return tuple(samples[f"router_{name}"] for name in names)

    seen = [gauges()]
    worker = server.start_worker(hold_two)
    os.read(ready[0], 1)
    seen.append(gauges())
    os.write(go[1], b".")
    worker.wait()
    seen.append(gauges())
    worker.reclaim()
    seen.append(gauges())
    return seen


def test_gauges_are_the_shared_table(tmp_path: Path) -> None:
    """What is in flight, queued and alive is read from the table: right at every moment, from whichever process."""
    before, holding, killed, reclaimed = alone(_gauges, tmp_path)
    assert before == (0, 0, 3, 0, 0)
    assert holding == (2, 0, 3, 1, 0)
    assert killed == (2, 0, 3, 1, 0)
    assert reclaimed == (0, 0, 3, 0, 2)


def _scraped_beside_an_empty_file(folder: Path) -> Samples:
    server = Server(folder)
    server.run_worker(one_request)
    (server.folder / "counter_7.db").touch()  # a worker has just made it, and not yet given it its size
    return server.samples()


def test_scrape_while_a_worker_makes_its_file_succeeds(tmp_path: Path) -> None:
    """A file without anything in it is no reason for a 500: nothing was counted there, and the others are shown."""
    assert alone(_scraped_beside_an_empty_file, tmp_path)[REQUESTS % 200] == 1


def _empty_at_start(folder: Path) -> tuple[list[str], list[str]]:
    server = Server(folder)
    server.run_worker(one_request)
    (server.folder / "note.txt").write_text("not the router's")
    before = server.files()
    LocalRouter(folder)
    return before, server.files()


def test_start_counts_from_zero(tmp_path: Path) -> None:
    """A new server empties the directory of an old one's counters, and of nothing else."""
    before, after = alone(_empty_at_start, tmp_path)
    assert "counter_0.db" in before
    assert "counter_0.db" not in after
    assert "note.txt" in after
