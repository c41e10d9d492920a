"""The queue over real workers."""

import os
import signal
import socket
from collections.abc import Callable

import pytest
import requests

from tests.support.clients import Crowd, raw_request
from tests.support.gate import Gate
from tests.support.router import Router, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


def queued(router: Router) -> float:
    """Requests waiting, as the metrics say."""
    return router.metrics()["router_queued_requests"]


def test_served_in_order_of_arrival_whichever_worker_holds_them(start_gated: Start, gate: Gate) -> None:
    """Requests that arrive one after another, over two workers, enter the model in that order."""
    router = start_gated(MAX_CONCURRENCY=1, QUEUE_SIZE=50, QUEUE_TIMEOUT_MS=600_000)
    crowd = Crowd(lambda n: router.infer(f"nr {n}").status_code).send(1)
    gate.wait_inside(1)
    for n in range(1, 31):
        crowd.send(1)
        until(lambda: queued(router) == n, f"{n} wait")
    for _ in range(31):
        gate.wait_inside(1)
        gate.let_go()
    assert crowd.join().counts() == {200: 31}
    assert gate.entered == [f"nr {n}" for n in range(31)]
    assert gate.peak == 1


def test_full_queue_and_late_waiter_are_refused_with_their_reason(start_gated: Start, gate: Gate) -> None:
    """queue_full at once, queue_timeout after the wait, both with a computed Retry-After, neither in the model."""
    router = start_gated(MAX_CONCURRENCY=1, QUEUE_SIZE=2, QUEUE_TIMEOUT_MS=5000)
    first = Crowd(lambda _: router.infer().status_code).send(1)
    gate.wait_inside(1)
    waiting = Crowd(lambda _: router.infer()).send(2)
    until(lambda: queued(router) == 2, "two wait")
    full = router.infer()
    assert (full.status_code, full.json()["code"]) == (429, "queue_full")
    assert full.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(full.headers["Retry-After"]) <= 60
    for late in waiting.join().answers.values():
        assert (late.status_code, late.json()["code"]) == (429, "queue_timeout")
        assert 1 <= int(late.headers["Retry-After"]) <= 60
    assert queued(router) == 0
    gate.open()
    assert first.join().counts() == {200: 1}
    assert len(gate.entered) == 1
    for reason, count in (("queue_full", 1), ("queue_timeout", 2)):
        series = f'router_rejected_requests_total{{reason="{reason}"}}'
        until(lambda: router.metrics()[series] == count, "the rejections are counted")


def test_without_a_queue_overflow_is_refused_at_once(start_gated: Start, gate: Gate) -> None:
    """limit_reached, with Retry-After."""
    router = start_gated(MAX_CONCURRENCY=1)
    held = Crowd(lambda _: router.infer().status_code).send(1)
    gate.wait_inside(1)
    refused = router.infer()
    assert (refused.status_code, refused.json()["code"]) == (429, "limit_reached")
    assert refused.headers["Retry-After"] == "1"
    gate.open()
    held.join()


def test_waiter_whose_client_left_leaves_the_queue_at_once(start_gated: Start, gate: Gate) -> None:
    """It neither keeps a place nor reaches the model, and those behind it move up."""
    router = start_gated(MAX_CONCURRENCY=1, QUEUE_SIZE=2, QUEUE_TIMEOUT_MS=60_000)
    crowd = Crowd(lambda n: router.infer(f"nr {n}").status_code).send(1)
    gate.wait_inside(1)
    leaving = raw_request(router.port, "leaving")
    until(lambda: queued(router) == 1, "it waits")
    crowd.send(1)
    until(lambda: queued(router) == 2, "another waits behind it")
    leaving.close()
    until(lambda: queued(router) == 1, "it left")
    gate.let_go()
    gate.wait_entered(2)
    gate.open()
    assert crowd.join().counts() == {200: 2}
    assert gate.entered == ["nr 0", "nr 1"]


def test_dead_workers_waiters_give_way_to_the_living(start_gated: Start, gate: Gate) -> None:
    """SIGKILL of a worker with requests inside and waiting: its places go to those who still wait."""
    router = start_gated(MAX_CONCURRENCY=4, QUEUE_SIZE=20, QUEUE_TIMEOUT_MS=60_000)
    crowd = Crowd(lambda _: router.infer().status_code).send(16)
    gate.wait_inside(4)
    until(lambda: queued(router) == 12, "12 wait")
    dead = gate.pid_inside()  # perhaps the other worker has not started yet
    os.kill(dead, signal.SIGKILL)
    until(lambda: crowd.counts()["ConnectionError"] > 0, "the dead worker's clients noticed")
    until(lambda: dead not in router.workers() and router.metrics()["router_workers"] == 2, "the worker is replaced")
    crowd.send(8)  # perhaps it had all of the others
    until(lambda: gate.inside == 4, "its places are taken")
    until(lambda: 4 + queued(router) + crowd.counts()["ConnectionError"] == 24, "all others wait")
    gate.open()
    counts = crowd.join().counts()
    assert set(counts) == {200, "ConnectionError"}
    assert gate.peak == 4
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "every permit is back")
    assert queued(router) == 0


@pytest.mark.alone
def test_probes_answer_while_the_cap_and_the_queue_are_full_and_many_more_ask(start_gated: Start, gate: Gate) -> None:
    """Every probe and scrape answers 200 while ten times as many clients as may be served are being refused."""
    router = start_gated(MAX_CONCURRENCY=2, QUEUE_SIZE=2, QUEUE_TIMEOUT_MS=60_000, ACCESS_LOG="off")
    held = Crowd(lambda _: router.infer().status_code).send(4)
    gate.wait_inside(2)
    until(lambda: queued(router) == 2, "the queue is full")
    asking = True

    def ask_again(_: int) -> set[int]:
        seen = set()
        with requests.Session() as session:
            while asking:
                seen.add(session.post(f"{router.url}/infer", json={"prompt": "x"}, timeout=20).status_code)
        return seen

    crowd = Crowd(ask_again).send(40)
    for _ in range(20):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert requests.get(router.url + path, timeout=20).status_code == 200
    asking = False
    assert all(seen == {429} for seen in crowd.join().answers.values())
    gate.open()
    assert held.join().counts() == {200: 4}


def test_probes_pass_a_crowd_also_on_kept_connections(start_gated: Start, gate: Gate) -> None:
    """300 requests and two probes, all ready at once, on connections used before: the probes are soon answered."""
    router = start_gated(MAX_CONCURRENCY=1, WEB_CONCURRENCY=1, ACCESS_LOG="all")
    (worker,) = router.workers()
    held = Crowd(lambda _: router.infer().status_code).send(1)
    gate.wait_inside(1)
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    first_probe = connect(router.port, ask)
    others = [connect(router.port, ask) for _ in range(300)]
    last_probe = connect(router.port, ask)
    everybody = [first_probe, *others, last_probe]
    for sock in everybody:
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    until(lambda: accesses(router).count("/healthz") == 302, "the first requests are logged")
    before = len(accesses(router))
    os.kill(worker, signal.SIGSTOP)
    for sock in others:
        sock.sendall(b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}')
    for sock in (first_probe, last_probe):
        sock.sendall(ask)
    os.kill(worker, signal.SIGCONT)
    for sock in everybody:
        assert sock.recv(65536)
        sock.close()
    until(lambda: len(accesses(router)) == before + 302, "every request is logged")
    answered = accesses(router)[before:]
    places = [place for place, path in enumerate(answered) if path == "/healthz"]
    assert max(places) < 100, "a probe waited for the crowd"
    gate.open()
    held.join()


def connect(port: int, request: bytes) -> socket.socket:
    """A connection on which this was sent."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(request)
    return sock


def accesses(router: Router) -> list[str]:
    """The paths of the access log, in the order in which their requests ended."""
    return [event["path"] for event in router.events() if event.get("logger") == "router.access"]
