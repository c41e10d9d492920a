"""How connections spread over the workers."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.router import Router, open_files, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
ESTABLISHED = "01"


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    """Closes what was opened."""
    with ExitStack() as opened:
        yield opened


def connect(router: Router, count: int, sockets: ExitStack) -> None:
    """So many clients connect, and ask nothing."""
    for _ in range(count):
        sockets.enter_context(socket.create_connection(("127.0.0.1", router.port), 10))


def connections(router: Router, pid: int) -> int:
    """How many of the router's connections this process has, by the kernel's account."""
    names = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == ESTABLISHED and int(local.split(":")[1], 16) == router.port:
            names.add(f"socket:[{rest[5]}]")
    return len(names & open_files(pid))


def spread(router: Router, total: int) -> list[int]:
    """How many connections each worker has, when all of them are accepted."""
    until(lambda: sum(connections(router, pid) for pid in router.workers()) == total, f"{total} are accepted")
    return [connections(router, pid) for pid in router.workers()]


def wait_until_all_accept(router: Router, held: int = 0) -> None:
    """A worker counts as one before it has come to its first connection. So many are held by clients."""
    with ExitStack() as opened:
        while not all(connections(router, pid) for pid in router.workers()):
            connect(router, 1, opened)
    spread(router, held)


@pytest.mark.alone  # whom the kernel gives no time takes no connection
@pytest.mark.parametrize("workers", [2, 4])
def test_clients_that_connect_at_once_spread_evenly(start: Start, sockets: ExitStack, workers: int) -> None:
    """They stay for long, so a worker that took most of them would be the slowest for as long."""
    router = start(WEB_CONCURRENCY=workers)
    wait_until_all_accept(router)
    connect(router, 96, sockets)
    counts = spread(router, 96)
    assert max(counts) - min(counts) <= 96 / workers / 2, counts


@pytest.mark.alone
def test_worker_with_fewer_connections_takes_the_next(start: Start, sockets: ExitStack) -> None:
    """A worker is new, and has none: those that come next are mostly its."""
    router = start(WEB_CONCURRENCY=1)
    connect(router, 30, sockets)
    (old,) = router.workers()
    spread(router, 30)
    router.signal(signal.SIGTTIN)
    until(lambda: router.metrics()["router_workers"] == 2, "two workers")
    wait_until_all_accept(router, 30)
    connect(router, 30, sockets)
    spread(router, 60)
    assert connections(router, old) <= 40


def test_stopped_worker_keeps_no_client_waiting(start: Start, sockets: ExitStack) -> None:
    """It has the fewest connections and accepts none. The other one is ahead, gives way each time, and then accepts."""
    router = start(WEB_CONCURRENCY=2)
    wait_until_all_accept(router)
    stopped, _ = router.workers()
    os.kill(stopped, signal.SIGSTOP)
    try:
        connect(router, 12, sockets)
        for _ in range(20):
            assert requests.get(f"{router.url}/healthz", timeout=20).status_code == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
