"""Requests that wait for the first endpoint of their model: what they hold, and what newer routes mean for them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import Greenlet

from app.admission.permit import Permit
from app.routing.endpoint_wait import EndpointWait, lacks_endpoints
from app.routing.registered_model import RegisteredModel
from tests.support.local_router import Response
from tests.support.routed_router import RoutedRouter
from tests.support.upstream import Hold, Upstream

KEY = "dns m.test:8000"
WAITS = {"name": "m", "dns": "m.test:8000", "no_endpoint_wait_s": 60, "health_check": {"interval_s": 0}}
BRIEF = {**WAITS, "name": "brief", "no_endpoint_wait_s": 0.001}


def until(condition: Callable[[], object]) -> None:
    """Let other greenlets run until the condition holds."""
    with gevent.Timeout(20):
        while not condition():
            gevent.sleep(0.002)


class Stage(RoutedRouter):
    """A router with one permit, and the model `m`, which has no endpoint yet."""

    def __init__(self, folder: Path, *models: Mapping[str, Any], **environ: str) -> None:
        given = {"MAX_CONCURRENCY": "1", "QUEUE_SIZE": "5", "QUEUE_TIMEOUT_MS": "20000", "SIMULATED_LATENCY_MS": "0"}
        super().__init__(folder, *(models or (WAITS,)), **{**given, **environ})
        if KEY in self.registry.sources():
            self.find()  # it is known that there is none

    def find(self, *servers: Upstream) -> None:
        """Publish that these are the endpoints."""
        self.found(KEY, *(server.url for server in servers))

    def send(self, path: str = "/v1/chat/completions", model: str = "m", **headers: str) -> "Greenlet[..., Response]":
        """Send a request, in a greenlet."""
        said = {"prompt": "hi"} if path == "/infer" else {"messages": [{"role": "user", "content": "hi"}]}
        body = {"model": model, **said}
        return gevent.spawn(self.ask, "POST", path, json.dumps(body), headers)

    def waiting(self, model: str = "m") -> int:
        """How many requests wait for an endpoint."""
        return dict(self.registry.waiting())[model]

    def counted(self, model: str) -> int:
        """How many requests count for the model."""
        return self.router.counters.total(self.registry.model_ids()[model])

    def take_permit(self) -> Permit:
        """Take the only permit."""
        permit = self.router.limiter.request()
        assert isinstance(permit, Permit)
        return permit


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes a stage. At the end nothing is held."""
    with ExitStack() as stack:
        made: list[Stage] = []

        def make(*models: Mapping[str, Any], **environ: str) -> Stage:
            made.append(stack.enter_context(Stage(tmp_path, *models, **environ)))
            return made[-1]

        yield make
        for each in made:
            assert each.router.limiter.snapshot() == (0, 0)
            assert all(number == 0 for _, number in each.registry.waiting())
            assert all(each.counted(name) == 0 for name in each.registry.model_ids())


@pytest.fixture
def server() -> Iterator[Upstream]:
    """A model server."""
    with Upstream() as upstream:
        yield upstream


def outcome(request: "Greenlet[..., Response]") -> tuple[int, str | None]:
    """Status of the response, and the code of an error."""
    response = request.get(timeout=20)
    error = json.loads(response.body).get("error") or {}
    return response.status, error.get("code")


@pytest.mark.parametrize(
    ("method", "more"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
def test_request_about_a_response_waits_for_no_endpoint(stage: Callable[..., Stage], method: str, more: str) -> None:
    """Only the endpoint that created the response has it: without that one it is a 404, at once."""
    router = stage()
    router.registry.responses.note("resp_1", "m", "http://127.0.0.1:1", "")
    assert outcome(gevent.spawn(router.ask, method, f"/v1/responses/resp_1{more}")) == (404, "response_not_found")


@pytest.mark.parametrize(("places", "said"), [("0", "QUEUE_SIZE is 0"), ("1", "all 1 places")])
def test_request_that_may_not_wait_counts_as_rejected(stage: Callable[..., Stage], places: str, said: str) -> None:
    """A model that is scaled to zero is scaled up by its demand, also where no request may wait for it."""
    router = stage(QUEUE_SIZE=places)
    waits = [router.send() for _ in range(int(places))]
    until(lambda: router.waiting() == len(waits))
    refused = [router.send().get(timeout=20) for _ in range(3)]
    assert [response.status for response in refused] == [503] * 3
    assert said in refused[0].body
    (state,) = router.registry.model_states(cap=1)
    assert state.rejected == 3
    router.publish({"name": "m", "protocol": "simulated"})
    assert [outcome(each) for each in waits] == [(200, None)] * len(waits)


def test_protocol_that_changes_ends_the_wait(stage: Callable[..., Stage]) -> None:
    """A request that the model would not take any more is refused as a new one is. `/infer`, of no protocol, waits on.

    A simulated model takes them all.
    """
    router = stage()
    chat, infer = router.send(), router.send("/infer")
    until(lambda: router.waiting() == 2)
    router.publish({**WAITS, "protocol": "v2"})
    refused = outcome(chat)
    assert refused == outcome(router.send()) == (400, "protocol_mismatch")
    assert router.waiting() == 1
    router.publish({"name": "m", "protocol": "simulated"})
    assert infer.get(timeout=20).status == 200


def test_model_that_becomes_simulated_serves_what_waits(stage: Callable[..., Stage]) -> None:
    """It takes requests of every protocol."""
    router = stage()
    chat = router.send()
    until(lambda: router.waiting() == 1)
    router.publish({"name": "m", "protocol": "simulated"})
    assert outcome(chat) == (200, None)


def test_model_that_goes_ends_the_wait(stage: Callable[..., Stage]) -> None:
    """404, as for a new request."""
    router = stage()
    chat = router.send()
    until(lambda: router.waiting() == 1)
    router.publish({"name": "n", "protocol": "simulated"})
    assert outcome(chat) == (404, "model_not_found")


def test_request_goes_on_by_the_limit_of_newer_routes(stage: Callable[..., Stage], server: Upstream) -> None:
    """Two requests wait; the model has a limit of one by the time it has an endpoint: one of them is rejected."""
    router = stage(MAX_CONCURRENCY="5")
    server.answer = hold = Hold()
    both = [router.send(), router.send()]
    until(lambda: router.waiting() == 2)
    router.publish({**WAITS, "max_concurrency": 1})
    assert router.waiting() == 2
    router.find(server)
    until(lambda: any(request.ready() for request in both) and server.inside)
    assert router.counted("m") == 1
    assert router.router.traffic.rejections(router.registry.model_ids()["m"]) == 1
    hold.release()
    assert sorted(map(outcome, both), key=str) == [(200, None), (429, "model_limit_reached")]


def test_request_whose_endpoint_goes_while_it_queues_gives_everything_back(
    stage: Callable[..., Stage], server: Upstream
) -> None:
    """It gets its permit, has no endpoint any more, and then waits without the permit and without a place."""
    router = stage({**WAITS, "max_concurrency": 1})
    router.find(server)
    permit = router.take_permit()
    chat = router.send()
    until(lambda: router.router.limiter.snapshot() == (1, 1))
    assert router.counted("m") == 1
    router.find()
    permit.release()
    until(lambda: router.waiting() == 1)
    assert router.router.limiter.snapshot() == (0, 0)
    assert router.counted("m") == 0
    router.find(server)
    assert outcome(chat) == (200, None)


def test_endpoint_that_appears_between_two_looks_costs_no_second_permit(
    stage: Callable[..., Stage], server: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process publishes an endpoint right after the request, with its permit, has found none."""
    router = stage(WAITS, MAX_CONCURRENCY="2")
    server.answer = hold = Hold()
    router.find(server)
    permits = [router.take_permit(), router.take_permit()]
    chat = router.send()
    until(lambda: router.router.limiter.snapshot() == (2, 1))
    router.find()
    renewed = router.registry.renewed

    def publishing(model: RegisteredModel) -> RegisteredModel:
        now = renewed(model)
        if lacks_endpoints(now, ""):
            router.find(server)
        return now

    monkeypatch.setattr(router.registry, "renewed", publishing)
    for permit in permits:
        permit.release()
    until(lambda: server.inside == 1)
    assert router.router.limiter.snapshot() == (1, 0)
    hold.release()
    assert outcome(chat) == (200, None)


def test_fallback_that_has_to_wait_holds_no_place(stage: Callable[..., Stage], server: Upstream) -> None:
    """A request that goes to another model gets a place of it, and gives it back when that one has no endpoint."""
    first = {"name": "first", "endpoints": ["http://127.0.0.1:1"], "fallback": ["m"], "fallback_on": ["queue_timeout"]}
    router = stage(first, {**WAITS, "max_concurrency": 1}, QUEUE_TIMEOUT_MS="50")
    permit = router.take_permit()
    chat = router.send(model="first")
    until(lambda: router.waiting() == 1)
    assert (router.counted("first"), router.counted("m")) == (0, 0)
    permit.release()
    router.find(server)
    response = chat.get(timeout=20)
    assert (response.status, response.headers["x-router-model"]) == (200, "m")


def test_fallback_is_the_one_of_newer_routes(stage: Callable[..., Stage], server: Upstream) -> None:
    """The routes change while the request is in the queue: its fallback is then another server."""
    with Upstream() as old:
        first = {"name": "first", "endpoints": ["http://127.0.0.1:1"], "fallback": ["spare"]}
        spare = {"name": "spare", "health_check": {"interval_s": 0}}
        router = stage(first, {**spare, "endpoints": [old.url]})
        permit = router.take_permit()
        chat = router.send(model="first")
        until(lambda: router.router.limiter.snapshot() == (1, 1))
        router.publish(first, {**spare, "endpoints": [server.url]})
        permit.release()
        response = chat.get(timeout=20)
    assert (response.status, response.headers["x-router-model"]) == (200, "spare")
    assert (len(old.seen), len(server.seen)) == (0, 1)


def test_version_that_has_no_endpoint_waits_beside_one_that_has(stage: Callable[..., Stage], server: Upstream) -> None:
    """A pinned version waits for its own endpoints; requests that pin none are served by the other version."""
    versions = [{"name": "1", "endpoints": [server.url]}, {"name": "2", "dns": "m.test:8000", "weight": 1}]
    router = stage({"name": "m", "versions": versions, "no_endpoint_wait_s": 60, "health_check": {"interval_s": 0}})
    pinned = router.send(**{"X-Model-Version": "2"})
    until(lambda: router.waiting() == 1)
    assert outcome(router.send()) == (200, None)
    assert router.waiting() == 1
    with Upstream() as second:
        router.find(second)
        assert outcome(pinned) == (200, None)
        assert len(second.seen) == 1


def test_one_greenlet_looks_for_newer_routes(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the last request leaves and the next one comes, there is one; and there is one whenever it must."""
    router = stage(WAITS, BRIEF)
    looking, most = 0, 0
    look = EndpointWait._look

    def counted(self: EndpointWait, seen: int) -> None:
        nonlocal looking, most
        looking += 1
        most = max(most, looking)
        look(self, seen)
        looking -= 1

    monkeypatch.setattr(EndpointWait, "_look", counted)
    for _ in range(20):
        assert outcome(router.send(model="brief")) == (503, "no_endpoint")
    assert most == 1
    until(lambda: looking == 0)
    chat = router.send()
    until(lambda: router.waiting() == 1 and looking == 1)
    router.publish({"name": "m", "protocol": "simulated"})
    assert outcome(chat) == (200, None)
    until(lambda: looking == 0)
    assert most == 1
