"""GET /admin/live of a real router: what its events say, where it is served, and what it costs."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from app.cli.top import whole
from tests.support.clients import Crowd, chat
from tests.support.gate import Gate
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Upstream

pytestmark = pytest.mark.slow


@pytest.fixture
def start_admin(start: Callable[..., Router]) -> Callable[..., tuple[Router, str]]:
    """Starts a router with an admin listener; returns both."""

    def begin(**settings: object) -> tuple[Router, str]:
        port = free_port()
        return start(ADMIN_BIND=f"127.0.0.1:{port}", **settings), f"http://127.0.0.1:{port}"

    return begin


@contextmanager
def watch(admin: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Opens the stream; yields the content of its events."""
    with requests.get(f"{admin}/admin/live", stream=True, timeout=10) as response:
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "text/event-stream"
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data: "))


@contextmanager
def watch_all(admin: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The same, but every event has all endpoints."""
    with watch(admin) as events:
        yield whole(events)


def until_shown(events: Iterator[dict[str, Any]], condition: Callable[[dict[str, Any]], object], most: int = 20) -> Any:
    """Returns the first event that meets the condition; fails after so many, one a second."""
    seen = [next(events)]
    while not condition(seen[-1]):
        assert len(seen) < most, seen[-1]
        seen.append(next(events))
    return seen[-1]


def test_pages_for_operators_are_on_the_admin_listener_only(
    share: Callable[..., Router], start_admin: Callable[..., tuple[Router, str]]
) -> None:
    """Without ADMIN_BIND there are none, and with it they are not where clients are."""
    without, (router, admin) = share(), start_admin()
    for path in ("/", "/admin/live"):
        assert requests.get(without.url + path, timeout=10).status_code == 404
        response = requests.get(router.url + path, timeout=10)
        assert response.status_code == 404
        assert "admin listener" in response.json()["detail"]
        with requests.get(admin + path, timeout=10, stream=True) as response:
            assert response.status_code == 200


def test_events_tell_what_all_workers_do(gate: Gate, start_gated: Callable[..., Router]) -> None:
    """Whichever worker is asked: in flight, the queue and rates are those of all workers together."""
    port = free_port()
    router = start_gated(ADMIN_BIND=f"127.0.0.1:{port}", MAX_CONCURRENCY=2, QUEUE_SIZE=1, QUEUE_TIMEOUT_MS=60_000)
    with ExitStack() as stack:
        streams = [stack.enter_context(watch(f"http://127.0.0.1:{port}")) for _ in range(6)]
        for events in streams:
            next(events)
        crowd = Crowd(lambda number: router.infer().status_code).send(3)
        for events in streams:
            wanted = (2, 1, 2)  # the other worker counts once it has started
            found = until_shown(events, lambda event: (event["in_flight"], event["queued"], event["workers"]) == wanted)
            assert (found["limit"], found["queue_size"]) == (2, 1)
        assert router.infer().status_code == 429
        for events in streams:
            assert until_shown(events, lambda event: event["rejections_per_s"])
        gate.open()
        crowd.join()
        for events in streams:
            until_shown(events, lambda event: (event["in_flight"], event["queued"]) == (0, 0))
            found = until_shown(events, lambda event: event["times_s"]["in_model"])  # counted after the response
            assert found["times_s"]["in_model"]["p99"] > 0


def test_ejected_and_unhealthy_endpoints_say_why(
    serve: Callable[..., Upstream], routes: Callable[..., str], start_admin: Callable[..., tuple[Router, str]]
) -> None:
    """An endpoint's state is in the next event, with the reason, and how long it lasts if that is known."""
    fails, ill = (serve(lambda seen, reply: reply.send(500)) for _ in range(2))
    model = {
        "name": "m",
        "health_check": {"interval_s": 0.2, "timeout_s": 20, "unhealthy_after": 1, "panic_threshold": 0},
        "ejection": {"consecutive_failures": 1, "base_s": 60, "max_s": 60, "max_share": 1},
        "versions": [{"endpoints": [fails.url, ill.url]}],
    }
    router, admin = start_admin(ROUTES_FILE=routes(model))
    with watch_all(admin) as events:
        ill.well = False
        found = until_shown(events, lambda event: event["endpoints"][1]["state"] == "unhealthy")
        assert found["endpoints"][1]["why"]
        assert chat(router).status_code >= 500
        found = until_shown(events, lambda event: event["endpoints"][0]["state"] == "ejected")["endpoints"][0]
        assert (found["url"], found["models"]) == (fails.url, ["m"])
        assert 50 < found["until_s"] <= 60
        assert found["why"]
        assert until_shown(events, lambda event: event["endpoints"][0]["failures_per_s"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_watchers_delay_no_worker(start_admin: Callable[..., tuple[Router, str]], number: signal.Signals) -> None:
    """A worker that ends or makes way ends the streams of its watchers in good order, and does not wait for them."""
    router, admin = start_admin(GRACEFUL_TIMEOUT_S=60)
    before = set(router.workers())
    with ExitStack() as stack:
        streams = [stack.enter_context(watch(admin)) for _ in range(6)]
        for events in streams:
            next(events)
        router.signal(number)
        for events in streams:
            assert len(list(events)) < 20  # a stream that is cut raises
    if number is signal.SIGTERM:
        assert router.wait_exit(30) == 0
    else:
        until(lambda: not before & set(router.workers()), "the workers have made way", 30)


def test_endpoints_that_do_not_change_are_told_once(
    routes: Callable[..., str], serve: Callable[..., Upstream], start_admin: Callable[..., tuple[Router, str]]
) -> None:
    """The first event has all, the later ones those that changed, and one after a reload all again."""
    busy, model = serve(), {"name": "m", "health_check": {"interval_s": 0}}
    urls = [f"http://127.0.0.1:{port}" for port in range(1, 101)]
    idle, used = {**model, "endpoints": urls}, {**model, "name": "b", "endpoints": [busy.url]}
    router, admin = start_admin(ROUTES_FILE=routes(idle, used))
    with watch(admin) as events:
        first = next(events)
        assert first["endpoints_complete"]
        assert [each["url"] for each in first["endpoints"]] == [*urls, busy.url]
        until_shown(events, lambda event: not event["endpoints_complete"] and not event["endpoints"])
        assert chat(router, "b").status_code == 200
        found = until_shown(events, lambda event: event["endpoints"])
        assert not found["endpoints_complete"]
        assert [each["url"] for each in found["endpoints"]] == [busy.url]
        routes(used)
        found = until_shown(events, lambda event: event["endpoints_complete"])
        assert [each["url"] for each in found["endpoints"]] == [busy.url]


@pytest.mark.alone
@pytest.mark.parametrize("count", [40, 500])
def test_ten_tabs_cost_under_two_percent_of_a_core(
    start_admin: Callable[..., tuple[Router, str]], routes: Callable[..., str], count: int
) -> None:
    """Ten who watch, one of whom reads nothing, cost all workers less than 2 % of a core, in one look of three.

    Every endpoint has failed, so all of them have an error and counters.
    """
    models = [
        {
            "name": f"model-{first}",
            "health_check": {"interval_s": 0},
            "endpoints": [f"http://127.0.0.1:{port}" for port in range(first, first + count // 5)],
        }
        for first in range(1, count, count // 5)
    ]
    router, admin = start_admin(
        ROUTES_FILE=routes(*models, {"name": "simulated", "protocol": "simulated"}), ACCESS_LOG="off"
    )
    for model in models:
        for _ in range(count // 5):
            chat(router, str(model["name"]))  # fails: there is no server
    began = cpu_seconds(router)
    time.sleep(2)
    idle = (cpu_seconds(router) - began) / 2
    with ExitStack() as stack:
        tabs = [stack.enter_context(tab(admin)) for _ in range(10)]
        readers = [threading.Thread(target=_read, args=(sock,), daemon=True) for sock in tabs[1:]]
        for reader in readers:
            reader.start()
        time.sleep(3)  # the first events, which have all endpoints, are made once
        costs: list[float] = []
        while not costs or (costs[-1] >= 0.02 and len(costs) < 3):
            began, at = cpu_seconds(router), time.monotonic()
            time.sleep(4)
            costs.append((cpu_seconds(router) - began) / (time.monotonic() - at) - idle)
        assert all(reader.is_alive() for reader in readers)
        for sock in tabs:
            sock.shutdown(socket.SHUT_RDWR)
        for reader in readers:
            reader.join(10)
    assert costs[-1] < 0.02, costs


def _read(sock: socket.socket) -> None:
    """Read all that comes, until the end."""
    while sock.recv(1 << 18):
        pass


@contextmanager
def tab(admin: str) -> Iterator[socket.socket]:
    """A connection that has asked for the stream."""
    port = int(admin.rpartition(":")[2])
    with socket.socket() as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET /admin/live HTTP/1.1\r\nHost: x\r\n\r\n")
        yield sock


def cpu_seconds(router: Router) -> float:
    """Processor time that the workers have used."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in router.workers()) / 1e9
