"""SIGTERM and HUP under load: nobody is cut off, and the process is gone as soon as it may."""

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
import requests

from tests.support.clients import Crowd, raw_request, read_all
from tests.support.gate import Gate
from tests.support.router import Router, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


def test_200_requests_in_flight_are_all_answered(start_gated: Start, gate: Gate) -> None:
    """SIGTERM with 200 in flight and 50 queued: 250 whole answers, each saying Connection: close, and then the end."""
    router = start_gated(MAX_CONCURRENCY=200, QUEUE_SIZE=50, QUEUE_TIMEOUT_MS=60_000)
    clients = [raw_request(router.port) for _ in range(200)]
    gate.wait_inside(200)
    clients += [raw_request(router.port) for _ in range(50)]
    until(lambda: router.metrics()["router_queued_requests"] == 50, "50 wait")
    router.signal(signal.SIGTERM)
    until(lambda: "Handling signal: term" in router.log(), "the arbiter heard it")
    assert gate.inside == 200
    gate.open()
    answers = [read_all(client) for client in clients]
    for client in clients:
        client.close()
    assert router.wait_exit() == 0
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close" in head
        assert body.endswith(b"}")
        assert f"content-length: {len(body)}".encode() in head.lower()


@pytest.mark.alone
def test_server_is_gone_within_a_second_of_the_last_answer(start_gated: Start, gate: Gate) -> None:
    """SIGTERM with 200 in flight."""
    router = start_gated(MAX_CONCURRENCY=200)
    clients = [raw_request(router.port) for _ in range(200)]
    gate.wait_inside(200)
    router.signal(signal.SIGTERM)
    until(lambda: "Handling signal: term" in router.log(), "the arbiter heard it")
    gate.open()
    for client in clients:
        with client:
            assert read_all(client)
    last_answer = time.monotonic()
    assert router.wait_exit() == 0
    assert time.monotonic() - last_answer < 1


def test_readiness_turns_503_while_requests_finish_and_new_work_is_refused(start_gated: Start, gate: Gate) -> None:
    """During the drain probes still get through: alive, not ready; and new inference is sent elsewhere."""
    router = start_gated(MAX_CONCURRENCY=5, WEB_CONCURRENCY=1)
    client = raw_request(router.port)
    gate.wait_inside(1)
    router.signal(signal.SIGTERM)
    until(lambda: not router.ready(), "not ready")
    answer = requests.get(f"{router.url}/readyz", timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["Connection"] == "close"
    assert requests.get(f"{router.url}/healthz", timeout=20).status_code == 200
    refused = router.infer()
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    gate.open()
    with client:
        assert b"200 OK" in read_all(client)
    assert router.wait_exit() == 0


def test_idle_connections_close_at_once(start: Start) -> None:
    """Idle keep-alive connections neither outlive nor delay the drain."""
    router = start(SIMULATED_LATENCY_MS=1)
    silent = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(5)]
    idle = [requests.Session() for _ in range(20)]
    for session in idle:  # those before them in the queue of the listener are accepted then
        assert session.post(f"{router.url}/infer", json={"prompt": "x"}, timeout=20).status_code == 200
    began = time.monotonic()
    router.signal(signal.SIGTERM)
    assert router.wait_exit() == 0
    assert time.monotonic() - began < 5, "KEEPALIVE_S is 75"
    for sock in silent:
        assert sock.recv(1) == b""
        sock.close()
    for session in idle:
        session.close()


def test_request_not_done_within_the_graceful_timeout_is_cut_off(start_gated: Start, gate: Gate) -> None:
    """GRACEFUL_TIMEOUT_S bounds the drain."""
    router = start_gated(GRACEFUL_TIMEOUT_S=1)
    client = raw_request(router.port)
    gate.wait_inside(1)
    router.signal(signal.SIGTERM)
    router.wait_exit()
    with client:
        assert b"200 OK" not in read_all(client)


def test_worker_that_makes_way_cuts_off_after_the_graceful_timeout_and_gives_back(
    start_gated: Start, gate: Gate
) -> None:
    """HUP with a request that never ends: the old worker goes all the same, and its permit comes back."""
    router = start_gated(GRACEFUL_TIMEOUT_S=1, MAX_CONCURRENCY=1)
    old = set(router.workers())
    client = raw_request(router.port)
    gate.wait_inside(1)
    router.signal(signal.SIGHUP)
    until(lambda: not old & set(router.workers()), "the old workers are gone")
    with client:
        assert b"200 OK" not in read_all(client)
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "its permit is back")
    assert router.metrics()["router_permits_reclaimed_total"] == 0, "given back by itself, not taken from the dead"


def test_rolling_reload_under_steady_load_fails_no_request(start: Start) -> None:
    """Three HUPs while 16 keep-alive clients ask without pause: every request is answered 200."""
    router = start(SIMULATED_LATENCY_MS=5, MAX_CONCURRENCY=64, LOG_LEVEL="warning")
    stop = threading.Event()

    def client(_: int) -> tuple[tuple[int, int], ...]:
        seen: Counter[int] = Counter()
        began = time.monotonic()
        with requests.Session() as session:
            while not stop.is_set():
                before, began = began, time.monotonic()
                try:
                    seen[session.post(f"{router.url}/infer", json={"prompt": "x"}, timeout=20).status_code] += 1
                except requests.ConnectionError:
                    if time.monotonic() - before < 0.5:
                        raise
                    # The client had no time for so long. A worker that makes way keeps idle connections half a second.
        return tuple(seen.items())

    crowd = Crowd(client).send(16)
    for _ in range(3):
        old = set(router.workers())
        router.signal(signal.SIGHUP)
        until(lambda: not old & set(router.workers()), "the old workers are gone")
        until(lambda: len(router.workers()) == 2, "two workers")
    stop.set()
    crowd.join()
    assert crowd.errors == []
    assert all(dict(seen).keys() == {200} for seen in crowd.answers.values())
    # Whoever lost an idle connection lost no more than that: no worker had its request.
    answered = sum(dict(seen)[200] for seen in crowd.answers.values())
    served = 'router_requests_total{code="200",model="simulated",route="/infer"}'
    until(lambda: router.metrics()[served] == answered, "all are counted")
    assert [name for name in router.metrics() if name.startswith("router_requests_total{")] == [served]
