"""The cap's promises against real gunicorn workers, seen by an observer inside the model."""

import os
import random
import signal
from collections.abc import Callable

import pytest
import requests

from tests.support.clients import Crowd, raw_request
from tests.support.gate import Gate
from tests.support.router import Router, until

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


def admits(router: Router, gate: Gate, limit: int) -> None:
    """A full `limit` can be admitted, and not one more, once the permits of earlier requests are back.

    A client has its response before that.
    """
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "nothing is in flight")
    gate.close()
    crowd = Crowd(lambda _: router.infer().status_code).send(limit)
    gate.wait_inside(limit)
    assert router.infer().status_code == 429
    gate.open()
    assert crowd.join().counts() == {200: limit}
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "nothing is in flight")


def test_cap_is_reached_and_never_exceeded_over_all_workers(start_gated: Start, gate: Gate) -> None:
    """Under overload exactly MAX_CONCURRENCY requests are inside the model, whichever workers serve them."""
    router = start_gated(MAX_CONCURRENCY=7, WEB_CONCURRENCY=3)
    crowd = Crowd(lambda _: router.infer().status_code).send(40)
    until(lambda: len(crowd.answers) == 33, "33 were refused")
    gate.wait_inside(7)  # who has a permit may still be on the way
    assert gate.peak == 7
    assert router.metrics()["router_inflight_requests"] == 7
    gate.open()
    assert crowd.join().counts() == {200: 7, 429: 33}
    assert gate.peak == 7
    assert len(gate.entered) == 7, "a refused request reached the model"


def test_killing_workers_at_random_never_breaks_the_cap(start_gated: Start, gate: Gate) -> None:
    """50 SIGKILLs under load: never above the cap, and afterwards all of it can be admitted again."""
    router = start_gated(MAX_CONCURRENCY=5, WEB_CONCURRENCY=3, LOG_LEVEL="error")
    stop = False
    dice = random.Random(1)

    def client(_: int) -> None:
        while not stop:
            try:
                router.infer()
            except requests.RequestException:
                pass

    crowd = Crowd(client).send(12)
    for _ in range(50):
        gate.wait_inside(5)
        victim = dice.choice(router.workers())
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(now := router.workers()) == 3 and victim not in now, "the worker is replaced")
        if gate.inside == 5:
            gate.let_go(dice.randint(1, 5))
    stop = True
    gate.open()
    crowd.join()
    assert gate.peak == 5
    admits(router, gate, 5)


def test_permit_of_a_client_that_leaves_while_served_comes_back(start_gated: Start, gate: Gate) -> None:
    """A client that disconnects frees its permit at once, though the model would still hold it."""
    router = start_gated(MAX_CONCURRENCY=2)
    clients = [raw_request(router.port) for _ in range(2)]
    gate.wait_inside(2)
    for client in clients:
        client.close()
    gate.wait_inside(0)
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "the permits are back")
    gone = 'router_requests_total{code="499",model="simulated",route="/infer"}'
    until(lambda: router.metrics().get(gone) == 2, "both are counted as gone")
    admits(router, gate, 2)


def test_permit_of_a_failing_model_comes_back(start_gated: Start, gate: Gate) -> None:
    """A model that raises costs a 500 and no permit."""
    router = start_gated(MAX_CONCURRENCY=2)
    for _ in range(5):
        failed = router.infer(members={"raise": True})
        assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
        assert "told to fail" not in failed.text
        # It comes back after the response, and the next request may be served by another worker before that.
        until(lambda: router.metrics()["router_inflight_requests"] == 0, "the permit is back")
    admits(router, gate, 2)


def test_head_and_bad_input_take_no_permit(start_gated: Start, gate: Gate) -> None:
    """With the cap reached, bad input is still answered as bad input; with it free, nothing is used up."""
    router = start_gated(MAX_CONCURRENCY=1)
    crowd = Crowd(lambda _: router.infer().status_code).send(1)
    gate.wait_inside(1)
    assert requests.head(f"{router.url}/infer", timeout=20).status_code == 405
    assert requests.post(f"{router.url}/infer", data="{", timeout=20).status_code == 400
    assert requests.post(f"{router.url}/infer", json={"prompt": 1}, timeout=20).status_code == 400
    assert router.infer().status_code == 429
    gate.open()
    crowd.join()
    admits(router, gate, 1)
