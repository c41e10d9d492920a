"""Metrics on a filesystem that is full: every request is served, and nothing is lost once there is room."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.router import Router, until

pytestmark = pytest.mark.slow

FILE_BYTES = 64 << 10
IN_MEMORY = "router_metric_files_in_memory"

# A mount namespace of its own, so that the filesystem is gone with the last process in it.
_MOUNT = 'mount -t tmpfs -o "size=$0" metrics "$1" && shift && exec "$@"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the small filesystem is mounted."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    return folder


@pytest.fixture
def start_on(tmp_path: Path, folder: Path) -> Iterator[Callable[..., Router]]:
    """Starts a router whose metrics are on a filesystem of so many bytes."""
    started = []

    def start(size: int, **settings: object) -> Router:
        as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        router = Router(tmp_path, None, (), None, PROMETHEUS_MULTIPROC_DIR=folder, **settings)
        router.run_by("unshare", *as_root, "--mount", "sh", "-c", _MOUNT, str(size), str(folder))
        started.append(router)
        return router.start()

    yield start
    for router in started:
        router.stop()


def enlarge(router: Router, folder: Path) -> None:
    """Give the filesystem a megabyte."""
    as_root = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
    namespace = ("nsenter", *as_root, "--target", str(router.pid), "--mount")
    subprocess.run([*namespace, "mount", "-o", "remount,size=1m", str(folder)], check=True)


def warnings(router: Router) -> list[str]:
    """What the router warned of."""
    return [event["event"] for event in router.events() if event["level"] == "warning"]


def test_a_full_filesystem_cuts_no_request(start_on: Callable[..., Router], folder: Path) -> None:
    """From the first request on each is served by a living worker, a gauge says what is missing, one line says why."""
    router = start_on(4096, MODEL_REF="m")
    workers = router.workers()
    for _ in range(20):
        assert router.infer().status_code == 200
    seen = router.metrics()
    assert seen[IN_MEMORY] >= 2
    assert not any(name.startswith("router_requests_total{") for name in seen)
    assert router.workers() == workers
    said = [text for text in warnings(router) if "kept in memory" in text]
    assert len(said) <= 3  # the arbiter's and the workers', of whom both say it if they begin at the same time
    enlarge(router, folder)
    until(lambda: router.metrics()[IN_MEMORY] == 0, "the metrics are in their files")
    assert router.infer().status_code == 200
    served = 'router_requests_total{code="200",model="m",route="/infer"}'
    until(lambda: router.metrics().get(served) == 21, "all are counted")
    assert router.workers() == workers


def test_files_that_cannot_grow_lose_nothing(
    start_on: Callable[..., Router], folder: Path, routes: Callable[..., str]
) -> None:
    """There is room for the files as they are made, and none for what more labels need, until there is."""
    names = [f"model-{number}" for number in range(16)]
    path = routes(*({"name": name, "protocol": "simulated"} for name in names))
    router = start_on(4 * FILE_BYTES, ROUTES_FILE=path, WEB_CONCURRENCY=1)
    workers = router.workers()
    assert router.metrics()[IN_MEMORY] == 0
    for _ in range(2):
        for name in names:
            assert router.infer(members={"model": name}).status_code == 200
    assert router.metrics()[IN_MEMORY] == 1
    enlarge(router, folder)
    until(lambda: router.metrics()[IN_MEMORY] == 0, "the metrics are in their files")
    for name in names:
        assert router.infer(members={"model": name}).status_code == 200
    seen = router.metrics()
    for name in names:
        assert seen[f'router_requests_total{{code="200",model="{name}",route="/infer"}}'] == 3
        assert seen[f'router_request_duration_seconds_count{{model="{name}",route="/infer"}}'] == 3
    assert router.workers() == workers
    assert [text for text in warnings(router) if "kept in memory" in text] != []


def test_a_successor_counts_on_in_memory(start_on: Callable[..., Router], folder: Path) -> None:
    """A worker that is killed takes its numbers in memory along. Its successor serves, and the gauge counts it only."""
    router = start_on(4096, WEB_CONCURRENCY=1)
    assert router.infer().status_code == 200
    (killed,) = router.workers()
    os.kill(killed, 9)
    until(lambda: len(router.workers()) == 1 and router.workers() != [killed] and router.ready(), "a successor serves")
    assert router.infer().status_code == 200
    assert router.metrics()[IN_MEMORY] == 2
    assert requests.get(f"{router.url}/metrics", timeout=10).status_code == 200
