"""Responses that follow one another (`previous_response_id`): who serves the next one, and what is counted."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.shared_memory.table import name_hash
from tests.support.credentials import bearer, key, write_keys
from tests.support.local_router import Response
from tests.support.routed_router import RoutedRouter
from tests.support.upstream import Answer, Reply, Seen, Upstream

STEADY = {"consecutive_failures": 1000, "failure_rate": 1, "min_requests": 1_000_000}


def keeper(name: str) -> Answer:
    """A model server that creates responses `resp_NAME_0`, `resp_NAME_1`, …, and has no others to continue."""
    made: list[str] = []

    def answer(seen: Seen, reply: Reply) -> None:
        body = json.loads(seen.body) if seen.method == "POST" else {}
        before = body.get("previous_response_id")
        if seen.method == "POST" and before is not None and before not in made:
            reply.send(404)
            return
        made.append(f"resp_{name}_{len(made)}")
        reply.send(200, json.dumps({"id": made[-1]}).encode(), X_Router_Model="inner")

    return answer


def broken(seen: Seen, reply: Reply) -> None:
    """A model server that fails."""
    reply.send(500)


def model(name: str, *servers: Upstream, **members: Any) -> dict[str, Any]:
    """A model of a routes file."""
    urls = [server.url for server in servers]
    return {"name": name, "endpoints": urls, "health_check": {"interval_s": 0}, "ejection": STEADY, **members}


class Stage(RoutedRouter):
    """A router, and the servers of its models `main` and `spare`; `main` falls back on `spare`."""

    def __init__(self, folder: Path, main: Upstream, spare: Upstream, **environ: str) -> None:
        self.main, self.spare = main, spare
        super().__init__(folder, *self.models(), **environ)

    def models(self, **members: Any) -> list[Mapping[str, Any]]:
        """The models, where `main` has these members too."""
        return [model("main", self.main, **{"fallback": ["spare"], **members}), model("spare", self.spare)]

    def create(self, name: str = "main", headers: dict[str, str] | None = None, **members: Any) -> Response:
        """Create a response."""
        return self.ask("POST", "/v1/responses", json.dumps({"model": name, "input": "hi", **members}), headers)


def made_by(response: Response) -> tuple[str, str | None]:
    """Which server created the response, and which model that is, by the response's header."""
    assert response.status == 200
    return json.loads(response.body)["id"].split("_")[1], response.headers.get("x-router-model")


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Upstream]]:
    """Starts model servers."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(Upstream(answer))


@pytest.fixture
def stage(tmp_path: Path, serve: Callable[[Answer], Upstream]) -> Iterator[Stage]:
    """Both servers work."""
    with Stage(tmp_path, serve(keeper("main")), serve(keeper("spare"))) as local:
        yield local
        assert local.router.limiter.snapshot() == (0, 0)


def created_by_fallback(stage: Stage) -> str:
    """The id of a response that `spare` created because `main` had failed; `main` works again."""
    well, stage.main.answer = stage.main.answer, broken
    response = stage.create()
    assert made_by(response) == ("spare", "spare")
    stage.main.reset(well)
    stage.spare.seen.clear()
    return str(json.loads(response.body)["id"])


def test_conversation_stays_with_the_fallback_that_has_it(stage: Stage) -> None:
    """Whoever continues a response of the fallback names the first model: every turn goes where the last one is.

    The body has the fallback's name, the metrics and the header too, and the header is there once.
    """
    response_id = created_by_fallback(stage)
    for _ in range(3):
        response = stage.create(previous_response_id=response_id)
        assert made_by(response) == ("spare", "spare")
        response_id = json.loads(response.body)["id"]
    assert len(stage.main.seen) == 0
    assert {json.loads(seen.body)["model"] for seen in stage.spare.seen} == {"spare"}
    page = stage.ask("GET", "/metrics").body
    assert 'router_requests_total{code="200",model="spare",route="/v1/responses"} 4.0' in page
    assert made_by(stage.create()) == ("main", "main"), "a new conversation begins with the model that it names"


@pytest.mark.parametrize("path", ["compact", "input_tokens"])
def test_what_continues_a_conversation_goes_where_it_is(stage: Stage, path: str) -> None:
    """As a further turn does."""
    body = {"model": "main", "input": "hi", "previous_response_id": created_by_fallback(stage)}
    assert made_by(stage.ask("POST", f"/v1/responses/{path}", json.dumps(body))) == ("spare", "spare")
    assert [seen.path for seen in stage.spare.seen] == [f"/v1/responses/{path}"]


def test_tokens_are_counted_by_the_named_model_only(stage: Stage) -> None:
    """Each model has a tokenizer of its own: a fallback would count others."""
    stage.main.answer = broken
    body = json.dumps({"model": "main", "input": "hi"})
    assert stage.ask("POST", "/v1/responses/input_tokens", body).status == 500
    assert stage.ask("POST", "/v1/responses/compact", body).status == 200
    assert [seen.path for seen in stage.spare.seen] == ["/v1/responses/compact"]


def test_conversation_with_the_first_model_stays_with_it(stage: Stage) -> None:
    """And the response says so, also if the model then fails: no other one has the response."""
    response_id = json.loads(stage.create().body)["id"]
    assert made_by(stage.create(previous_response_id=response_id)) == ("main", "main")
    stage.main.answer = broken
    failed = stage.create(previous_response_id=response_id)
    assert (failed.status, failed.headers["x-router-model"]) == (500, "main")
    assert len(stage.spare.seen) == 0


@pytest.mark.parametrize(
    "headers", [{"X-Router-Fallback": "none"}, {"X-Model-Version": "1"}], ids=["forbidden", "pinned version"]
)
def test_request_may_forbid_the_fallback_in_a_conversation_too(stage: Stage, headers: dict[str, str]) -> None:
    """The named model gets the request, and says that it does not have the response."""
    response_id = created_by_fallback(stage)
    got = stage.create(headers=headers, previous_response_id=response_id)
    assert (got.status, got.headers["x-router-model"]) == (404, "main")
    assert len(stage.spare.seen) == 0


def test_conversation_leaves_a_fallback_that_lost_it(stage: Stage, serve: Callable[[Answer], Upstream]) -> None:
    """The endpoint is gone, or the model is no fallback any more: the named model gets the request, as any other."""
    response_id = created_by_fallback(stage)
    old, stage.spare = stage.spare, serve(keeper("other"))
    stage.publish(*stage.models())
    assert stage.create(previous_response_id=response_id).status == 404
    assert (len(stage.main.seen), len(old.seen), len(stage.spare.seen)) == (1, 0, 0)
    stage.spare = old
    stage.publish(*stage.models(fallback=[]))
    assert stage.create(previous_response_id=response_id).status == 404
    assert (len(stage.main.seen), len(old.seen)) == (2, 0)
    stage.publish(*stage.models())
    assert made_by(stage.create(previous_response_id=response_id)) == ("spare", "spare")


def test_model_without_that_fallback_does_not_continue_its_responses(stage: Stage) -> None:
    """A model goes to no other one than its route says, whatever a request refers to."""
    response_id = json.loads(stage.create().body)["id"]
    assert stage.create("spare", previous_response_id=response_id).status == 404
    assert len(stage.spare.seen) == 1


def test_pinned_version_comes_before_the_endpoint_of_the_response(
    tmp_path: Path, serve: Callable[[Answer], Upstream]
) -> None:
    """A request that pins a version goes to that version, also if another one has the response before it."""
    one, two = serve(keeper("one")), serve(keeper("two"))
    versions = [{"name": "1", "endpoints": [one.url]}, {"name": "2", "endpoints": [two.url]}]
    route = {"name": "m", "versions": versions, "health_check": {"interval_s": 0}}
    with RoutedRouter(tmp_path, route) as router:

        def create(version: str, before: str | None = None) -> Response:
            body = json.dumps({"model": "m", "input": "hi", "previous_response_id": before})
            return router.ask("POST", "/v1/responses", body, {"X-Model-Version": version} if version else {})

        response_id = json.loads(create("1").body)["id"]
        assert made_by(create("", response_id))[0] == "one"
        assert made_by(create("1", response_id))[0] == "one"
        assert create("2", response_id).status == 404
        assert (len(one.seen), len(two.seen)) == (3, 1)


def test_only_what_a_model_makes_counts_as_served(stage: Stage) -> None:
    """Demand is reckoned from the time that requests take: what only asks about a response or a model has no part."""
    traffic, main = stage.router.traffic, stage.registry.model_ids()["main"]
    response_id = json.loads(stage.create().body)["id"]
    assert traffic.totals(main)[1] == 1
    for method, path in (("GET", ""), ("GET", "/input_items"), ("DELETE", "")):
        assert stage.ask(method, f"/v1/responses/{response_id}{path}").status == 200
    assert traffic.totals(main)[1] == 1
    stage.main.answer = broken
    assert stage.create(headers={"X-Router-Fallback": "none"}).status == 500
    assert traffic.totals(main)[1] == 1, "nor what fails"
    assert made_by(stage.create())[0] == "spare"
    assert (traffic.totals(main)[1], traffic.totals(stage.registry.model_ids()["spare"])[1]) == (1, 1)


def test_response_is_noted_for_the_model_that_made_it(stage: Stage) -> None:
    """Requests about a response of the fallback go there too."""
    response_id = created_by_fallback(stage)
    assert stage.registry.creator_of(response_id, "") == ("spare", name_hash(stage.spare.url))
    assert stage.ask("GET", f"/v1/responses/{response_id}").status == 200
    assert (len(stage.main.seen), len(stage.spare.seen)) == (0, 1)


SHARED, NARROW, FOREIGN = "ir-shared-key", "ir-narrow-key", "ir-foreign-key"


@pytest.fixture
def keyed(tmp_path: Path, serve: Callable[[Answer], Upstream]) -> Iterator[Stage]:
    """The same with keys: of the tenant `t` one for both models and one for `main` only, and one of the tenant `u`."""
    keys = key(SHARED), key(NARROW, models=["main"]), key(FOREIGN, "u")
    file = write_keys(tmp_path / "keys.json", *keys)
    with Stage(tmp_path, serve(keeper("main")), serve(keeper("spare")), KEYS_FILE=file) as local:
        yield local


def test_response_of_another_tenant_is_not_known(keyed: Stage) -> None:
    """Whoever learns its id can neither read, cancel or remove it nor continue it, and is told what an unknown id gets.

    No model server is asked.
    """
    response_id = json.loads(keyed.create(headers=bearer(SHARED)).body)["id"]
    keyed.main.seen.clear()
    paths = [("GET", ""), ("GET", "/input_items"), ("DELETE", ""), ("POST", "/cancel")]
    for name in (response_id, "resp_unknown"):
        answers = [keyed.ask(method, f"/v1/responses/{name}{path}", "", bearer(FOREIGN)) for method, path in paths]
        assert {answer.status for answer in answers} == {404}
        assert {answer.body.replace(name, "ID") for answer in answers} == {answers[0].body.replace(name, "ID")}
    continued = keyed.create(headers=bearer(FOREIGN), previous_response_id=response_id)
    assert (continued.status, json.loads(continued.body)["error"]["code"]) == (404, "response_not_found")
    assert not keyed.main.seen
    for method, path in paths[:-1]:
        assert keyed.ask(method, f"/v1/responses/{response_id}{path}", "", bearer(NARROW)).status == 200
    assert made_by(keyed.create(headers=bearer(NARROW), previous_response_id=response_id)) == ("main", "main")


def test_conversation_leads_to_no_model_that_the_key_is_not_for(keyed: Stage) -> None:
    """A response of the fallback, made with another key of the tenant, gives no way to the fallback, nor its name."""
    well, keyed.main.answer = keyed.main.answer, broken
    response = keyed.create(headers=bearer(SHARED))
    assert made_by(response) == ("spare", "spare")
    response_id = json.loads(response.body)["id"]
    keyed.main.reset(well)
    keyed.spare.seen.clear()
    assert keyed.create(headers=bearer(NARROW), previous_response_id=response_id).status == 404, "what `main` says"
    about = keyed.ask("GET", f"/v1/responses/{response_id}", "", bearer(NARROW))
    assert (about.status, "spare" in about.body) == (403, False)
    assert not keyed.spare.seen
    assert made_by(keyed.create(headers=bearer(SHARED), previous_response_id=response_id)) == ("spare", "spare")
