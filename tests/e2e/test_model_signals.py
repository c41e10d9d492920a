"""What the metrics say of each model: who is there and waits, what was rejected, and how many more would come."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.support.clients import Crowd, chat
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]
CAP = 3


class Held:
    """A model server that holds every request until the test lets all go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, seen: Seen, reply: Reply) -> None:
        self.go.wait(60)
        reply.send()


def of_models(router: Router) -> dict[str, tuple[float, ...]]:
    """In flight, queued, rejected, by model."""
    metrics = router.metrics()
    names = ("router_model_inflight", "router_model_queued", "router_model_rejected_requests_total")
    return {model: tuple(metrics[f'{name}{{model="{model}"}}'] for name in names) for model in ("limited", "free")}


def status(router: Router, model: str) -> Any:
    """The status of a chat with this model."""
    return chat(router, model).status_code


@pytest.fixture
def held(start: Start, serve: Serve, routes: Routes) -> tuple[Router, Held]:
    """A router of two models, one of which has a limit of its own, before a server that holds requests."""
    hold = Held()
    endpoints = [{"url": serve(hold).url}]
    models: list[dict[str, Any]] = [{"name": "limited", "max_concurrency": 2}, {"name": "free"}]
    file = routes(*({**model, "protocol": "openai", "endpoints": endpoints} for model in models))
    return start(ROUTES_FILE=file, MAX_CONCURRENCY=CAP, QUEUE_SIZE=2, QUEUE_TIMEOUT_MS=60_000), hold


def test_each_models_share_is_right_over_all_workers(held: tuple[Router, Held]) -> None:
    """In flight, queued, capacity, rejected and demand, while requests are held, after a SIGKILL, and at the end."""
    router, hold = held
    assert of_models(router) == {"limited": (0, 0, 0), "free": (0, 0, 0)}
    limited = Crowd(lambda _: status(router, "limited")).send(2)
    until(lambda: of_models(router)["limited"] == (2, 0, 0) and shares_agree(router), "two are in the model")
    assert status(router, "limited") == 429
    # No request was ever served: those rejected within some seconds are taken to be in progress.
    until(lambda: router.metrics()['router_demand_requests{model="limited"}'] == 3, "demand counts what was rejected")
    free = Crowd(lambda _: status(router, "free")).send(1)
    until(lambda: of_models(router)["free"] == (1, 0, 0) and shares_agree(router), "the cap is reached")
    free.send(2)
    until(lambda: of_models(router)["free"] == (1, 2, 0), "the queue is full")
    assert [status(router, "free") for _ in range(3)] == [429] * 3
    shares = {"limited": (2, 0, 1), "free": (1, 2, 3)}
    until(lambda: of_models(router) == shares, "the rejections are counted, which is done after the responses")
    until(lambda: router.metrics()['router_demand_requests{model="free"}'] == 6, "demand is that of either model")
    metrics = router.metrics()
    assert metrics['router_model_capacity{model="limited"}'] == 2
    assert metrics['router_model_capacity{model="free"}'] == CAP

    worker = router.workers()[0]
    router.signal(signal.SIGKILL, worker)
    until(lambda: worker not in router.workers() and router.metrics()["router_workers"] == 2, "the worker is replaced")
    until(lambda: shares_agree(router), "the gauges of models are those of the router again")
    assert [of[2] for of in of_models(router).values()] == [1, 3]
    hold.go.set()
    limited.join()
    free.join()
    until(lambda: [of[:2] for of in of_models(router).values()] == [(0, 0)] * 2, "all have come back")


def shares_agree(router: Router) -> bool:
    """Whether the models' gauges add up to the router's."""
    metrics = router.metrics()
    return all(
        sum(value for name, value in metrics.items() if name.startswith(of_model)) == metrics[of_all]
        for of_model, of_all in (
            ("router_model_inflight{", "router_inflight_requests"),
            ("router_model_queued{", "router_queued_requests"),
        )
    )


def test_demand_exceeds_the_cap_by_what_a_busy_model_rejects(start: Start) -> None:
    """Rejected per second times the mean duration: clients that ask again at once make demand many times the cap."""
    router = start(MODEL_REF="m", MAX_CONCURRENCY=1, SIMULATED_LATENCY_MS=1000)
    stopped = threading.Event()

    def ask_again(_: int) -> None:
        while not stopped.wait(0.02):
            requests.post(f"{router.url}/infer", json={"prompt": "hi"}, timeout=20)

    crowd = Crowd(ask_again).send(4)
    until(lambda: router.metrics()['router_demand_requests{model="m"}'] > 5, "demand is beyond the cap")
    assert router.metrics()['router_model_inflight{model="m"}'] <= 1
    stopped.set()
    crowd.join()
