"""A real Prometheus server scrapes the running router."""

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.clients import Crowd
from tests.support.gate import Gate
from tests.support.ports import free_port
from tests.support.router import Router, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


class Prometheus:
    """Debian's prometheus on loopback, scraping one router once a second; ended by its process id."""

    def __init__(self, folder: Path, target: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        config = folder / "prometheus.yml"
        job = {"job_name": "router", "scrape_interval": "1s", "scrape_timeout": "1s"}
        scrape = {"scrape_configs": [{**job, "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}]}
        config.write_text(json.dumps(scrape))  # JSON is YAML
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        self._process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Prometheus":
        until(self._up, "prometheus has scraped the router", 30)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def value(self, query: str) -> float | None:
        """The one value that a query answers, or None while there is none."""
        answer: dict[str, Any] = requests.get(f"{self.url}/api/v1/query", {"query": query}, timeout=20).json()
        results = answer["data"]["result"]
        return float(results[0]["value"][1]) if results else None

    def _up(self) -> bool:
        try:
            return self.value("up") == 1
        except (requests.RequestException, KeyError):
            return False


def test_prometheus_reads_what_is_in_flight_and_what_was_refused(
    start_gated: Start, gate: Gate, tmp_path: Path
) -> None:
    """While a load holds N requests inside, Prometheus says N; it counts the rejections that the clients counted."""
    router = start_gated(MAX_CONCURRENCY=9, QUEUE_SIZE=4, QUEUE_TIMEOUT_MS=600_000)
    with Prometheus(tmp_path, router.port) as prometheus:
        held = Crowd(lambda _: router.infer().status_code).send(13)
        gate.wait_inside(9)
        until(lambda: router.metrics()["router_queued_requests"] == 4, "4 wait")
        refused = Crowd(lambda _: router.infer().status_code).send(40).join().counts()[429]
        assert refused == 40
        until(lambda: prometheus.value("router_inflight_requests") == 9, "9 in flight")
        until(lambda: prometheus.value("router_queued_requests") == 4, "4 waiting")
        until(lambda: prometheus.value("sum(router_rejected_requests_total)") == refused, "the rejections")
        until(lambda: prometheus.value('router_requests_total{code="429"}') == refused, "and their status")
        until(lambda: prometheus.value("router_max_concurrency") == 9, "the cap")
        until(lambda: prometheus.value("router_workers") == 2, "both workers")
        gate.open()
        assert held.join().counts() == {200: 13}
        until(lambda: prometheus.value("router_inflight_requests") == 0, "none in flight")
        until(lambda: prometheus.value('router_requests_total{code="200"}') == 13, "13 served")
        until(lambda: prometheus.value("router_queue_wait_seconds_count") == 13, "each with its wait")


def test_promtool_finds_nothing_to_complain_of(share: Start) -> None:
    """Names, units, help texts and types are as Prometheus wants them."""
    router = share(SIMULATED_LATENCY_MS=0)
    router.infer()
    page = requests.get(f"{router.url}/metrics", timeout=20).content
    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False, timeout=20)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_page_comes_in_both_formats(share: Start) -> None:
    """OpenMetrics to who prefers it, text to everybody else."""
    router = share(SIMULATED_LATENCY_MS=0)
    text = requests.get(f"{router.url}/metrics", timeout=20)
    assert text.headers["Content-Type"].startswith("text/plain; version=")
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    open_metrics = requests.get(f"{router.url}/metrics", headers=accept, timeout=20)
    assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


def test_large_page_is_whole_and_valid(start: Start, routes: Callable[..., str]) -> None:
    """150 models, scraped twice at a time in both formats: every page is whole and valid."""
    names = [f"organization/model-{number}" for number in range(150)]
    path = routes(*({"name": name, "protocol": "simulated"} for name in names))
    router = start(ROUTES_FILE=path, SIMULATED_LATENCY_MS=0)
    for name in names:
        assert router.infer(members={"model": name}).status_code == 200
    served = 'router_requests_total{code="200",model="%s",route="/infer"}'
    until(lambda: {served % name for name in names} <= router.metrics().keys(), "all are counted")
    accepts = ["", "application/openmetrics-text; version=1.0.0"] * 2

    def scrape_as(accept: str) -> requests.Response:
        return requests.get(f"{router.url}/metrics", headers={"Accept": accept}, timeout=20)

    with ThreadPoolExecutor(len(accepts)) as pool:
        scrapes = list(pool.map(scrape_as, accepts))
    for scrape in scrapes:
        assert int(scrape.headers["Content-Length"]) == len(scrape.content) > 300_000
        for name in names:
            assert f"{served % name} 1.0\n" in scrape.text
    assert scrapes[1].text.endswith("# EOF\n")
    check = subprocess.run(["promtool", "check", "metrics"], input=scrapes[0].content, capture_output=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_head_says_the_length_of_the_page(share: Start) -> None:
    """HEAD returns what GET does, without the page, and the connection goes on."""
    router = share(SIMULATED_LATENCY_MS=0)
    with requests.Session() as session:
        for _ in range(2):
            head = session.head(f"{router.url}/metrics", timeout=20)
            assert head.status_code == 200
            assert head.headers["Content-Type"].startswith("text/plain; version=")
            assert int(head.headers["Content-Length"]) > 1000
            assert head.content == b""


def test_counters_survive_a_killed_worker_and_series_do_not_grow(start: Start) -> None:
    """10 SIGKILLs of workers: every request counted before is still counted, in no more series than before."""
    router = start(SIMULATED_LATENCY_MS=0)
    served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
    for _ in range(10):
        assert router.infer().status_code == 200
    until(lambda: router.metrics().get(served) == 10, "all are counted")
    before = router.metrics()
    for count in range(1, 11):
        worker = router.workers()[0]
        router.signal(signal.SIGKILL, worker)
        until(lambda: worker not in router.workers() and len(router.workers()) == 2, "the worker is replaced")
        assert router.infer().status_code == 200
        until(lambda: router.metrics()[served] == 10 + count, "what was counted before still is")
    assert router.metrics().keys() == before.keys()


def test_probes_and_scrapes_are_not_counted(share: Start) -> None:
    """Only inference counts."""
    router = share(SIMULATED_LATENCY_MS=0)

    def counted() -> dict[str, float]:
        return {name: total for name, total in router.metrics().items() if name.startswith("router_requests_total")}

    before = counted()
    for path in ("/healthz", "/readyz", "/metrics", "/nothing"):
        requests.get(router.url + path, timeout=20)
    served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
    after = {**before, served: before.get(served, 0) + 1}
    assert router.infer().status_code == 200
    until(lambda: counted().get(served) == after[served], "it is counted")
    assert counted() == after


def test_slow_reader_of_probes_harms_nobody(share: Start) -> None:
    """Connections that say nothing keep nobody from being served."""
    router = share(SIMULATED_LATENCY_MS=0)
    silent = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(200)]
    assert router.infer().status_code == 200
    for sock in silent:
        sock.close()
