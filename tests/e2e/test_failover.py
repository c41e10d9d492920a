"""Failover to another model: when it happens, what it keeps, and what it leaves as it is."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Answer, Hold, Reply, Seen, Upstream, send_empty

pytestmark = pytest.mark.slow

NO_CHECKS = {"interval_s": 0}
STEADY = {"consecutive_failures": 1000, "failure_rate": 1, "min_requests": 1_000_000}
TOO_LONG = b'{"error": "This model\'s maximum context length is 4096 tokens"}'


def model(name: str, *urls: str, **members: Any) -> dict[str, Any]:
    """A model of a routes file."""
    return {"name": name, "endpoints": urls, "health_check": NO_CHECKS, "ejection": STEADY, **members}


class Stage(NamedTuple):
    """A router, and the servers of its models `main`, `spare` and `last`: `main` falls back on the other two."""

    router: Router
    main: Upstream
    spare: Upstream
    last: Upstream

    def answer(self, main: Answer, spare: Answer = send_empty, last: Answer = send_empty) -> None:
        """Have the servers do this from now on, and forget what they saw."""
        self.main.reset(main)
        self.spare.reset(spare)
        self.last.reset(last)

    def seen(self) -> tuple[int, int, int]:
        """How many requests each server has got since then."""
        return len(self.main.seen), len(self.spare.seen), len(self.last.seen)

    def moved(self, reason: str, name: str = "main", to: str = "spare") -> float:
        """How often requests have gone from one to the other for this reason."""
        series = f'router_fallbacks_total{{model="{name}",reason="{reason}",to="{to}"}}'
        return self.router.metrics().get(series, 0)


def served_by(answer: requests.Response) -> str | None:
    """Which model the response names."""
    return answer.headers.get("x-router-model")


def fails(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    """A server's answer that is an error."""
    return lambda seen, reply: reply.send(status, body, **headers)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Shared by tests that leave it idle."""
    folder = tmp_path_factory.mktemp("failover")
    path = folder / "routes.json"
    with Upstream() as main, Upstream() as spare, Upstream() as last:
        both = {"fallback": ["spare", "last"]}
        eager = {"consecutive_failures": 1, "max_share": 1, "base_s": 300, "max_s": 300}
        models = [
            model("main", main.url, **both, aliases=["alias"], forward_credentials=True),
            model("spare", spare.url, upstream_model="small"),
            model("single", main.url, fallback=["narrow", "last"], max_concurrency=1),
            model("narrow", spare.url, max_concurrency=2),
            model("last", last.url),
            model("gone", f"http://127.0.0.1:{free_port()}", fallback=["spare"]),
            model("silent", main.url, fallback=["spare"], timeouts={"first_byte_s": 0.3}),
            model("brief", main.url, fallback=["spare"], timeouts={"total_s": 4, "connect_s": 4}),
            model("ejected", f"{last.url}/ejected", fallback=["spare"], ejection=eager),
            model("picky", main.url, fallback=["spare"], fallback_on=["no_endpoint"]),
            model("full", main.url, fallback=["spare"], fallback_on=["model_limit_reached"], max_concurrency=1),
            model("tensors", main.url, fallback=["others"], protocol="v2"),
            model("others", spare.url, protocol="v2", upstream_model="small"),
            model("lists", main.url, fallback=["lists-too"], paths=["/v1/custom", "/v1/own"]),
            model("lists-too", spare.url, fallback=["last"], paths=["/v1/custom"]),
        ]
        path.write_text(json.dumps({"models": models}))
        with Router(folder, ROUTES_FILE=path, MAX_CONCURRENCY=40, ACCESS_LOG="all") as router:
            yield Stage(router, main, spare, last)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (fails(429, Retry_After="7"), "status_429"),
        (fails(500), "status_5xx"),
        (fails(503), "status_5xx"),
        (fails(504), "status_5xx"),
        (fails(500, b"x" * 100_000), "status_5xx"),
        (lambda seen, reply: reply.raw(b""), "upstream_broken"),
    ],
    ids=["429", "500", "503", "504", "long 500", "hangs up"],
)
def test_another_model_serves_what_a_model_fails_to(stage: Stage, answer: Answer, reason: str) -> None:
    """The client gets the other model's response, which says whose it is; the metrics and the log say so too."""
    stage.answer(answer, lambda seen, reply: reply.send(200, b'{"by": "spare"}'))
    before = stage.moved(reason)
    request_id = f"{reason}-{before:g}"
    got = chat(stage.router, "alias", {"Authorization": "Bearer secret", "X-Request-Id": request_id}, top_p=1e0)
    assert (got.status_code, got.json(), served_by(got)) == (200, {"by": "spare"}, "spare")
    assert stage.seen() == (1, 1, 0)
    sent = stage.spare.seen[0]
    assert json.loads(sent.body)["model"] == "small"
    assert sent.body.replace(b'"small"', b'"alias"') == stage.main.seen[0].body.replace(b'"main"', b'"alias"')
    assert "authorization" in stage.main.seen[0].headers
    assert "authorization" not in sent.headers, "each model has its own rule for credentials"
    assert stage.router.logged(request_id)["model"] == "spare"
    assert stage.moved(reason) == before + 1


@pytest.mark.parametrize(
    ("name", "reason"), [("gone", "upstream_unreachable"), ("silent", "upstream_timeout"), ("ejected", "no_endpoint")]
)
def test_a_model_that_cannot_be_reached_is_replaced(stage: Stage, name: str, reason: str) -> None:
    """No connection, no first byte in time, no endpoint that takes requests."""
    stage.answer(lambda seen, reply: reply.wait_hung_up(), last=fails(500))
    if name == "ejected":
        assert served_by(chat(stage.router, name)) == "spare"  # its only endpoint fails, and is ejected
    before = stage.moved(reason, name)
    got = chat(stage.router, name)
    assert (got.status_code, served_by(got)) == (200, "spare")
    until(lambda: stage.moved(reason, name) == before + 1, "it is counted")


@pytest.mark.parametrize(
    ("status", "body"), [(400, b"{}"), (404, b"{}"), (401, b"{}"), (422, b"{}"), (500, TOO_LONG), (503, TOO_LONG)]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_fault_of_the_client_stays_with_its_model(stage: Stage, status: int, body: bytes, chunked: bool) -> None:
    """A request that every model would refuse is not sent to the next one."""

    def answer(seen: Seen, reply: Reply) -> None:
        if not chunked:
            reply.send(status, body)
        else:
            reply.begin(status)
            reply.chunk(body)
            reply.chunk()

    stage.answer(answer)
    got = chat(stage.router, "main")
    assert (got.status_code, got.content, served_by(got)) == (status, body, "main")
    assert stage.seen() == (1, 0, 0)


@pytest.mark.parametrize(
    ("headers", "name"),
    [({"X-Router-Fallback": "none"}, "main"), ({"X-Model-Version": "1"}, "main"), ({}, "picky")],
    ids=["forbidden", "pinned version", "another reason"],
)
def test_a_request_or_a_route_forbids_it(stage: Stage, headers: dict[str, str], name: str) -> None:
    """`X-Router-Fallback: none`, a pinned version, and a reason that `fallback_on` lacks: the model's own error."""
    stage.answer(fails(503, Retry_After="9"))
    got = chat(stage.router, name, headers)
    assert (got.status_code, got.headers["retry-after"], served_by(got)) == (503, "9", name)
    assert stage.seen() == (1, 0, 0)


def test_models_without_fallbacks_say_nothing(stage: Stage) -> None:
    """The header is there where the route has fallbacks, also if none was needed."""
    stage.answer(send_empty)
    assert served_by(chat(stage.router, "main")) == "main"
    assert served_by(chat(stage.router, "spare")) is None


def test_the_name_is_that_of_this_router(stage: Stage) -> None:
    """A router behind this one has names of its own."""
    stage.answer(fails(500), lambda seen, reply: reply.send(200, X_Router_Model="inner"))
    assert served_by(chat(stage.router, "main")) == "spare"


def test_fallbacks_are_tried_in_order(stage: Stage) -> None:
    """If the first fails too, the next serves; if all fail, the client gets what the last one said."""
    stage.answer(fails(500), fails(502), lambda seen, reply: reply.send(200, b'{"by": "last"}'))
    got = chat(stage.router, "main")
    assert (got.json(), served_by(got), stage.seen()) == ({"by": "last"}, "last", (1, 1, 1))
    stage.answer(fails(500), fails(502), fails(429, b'{"too": "many"}', Retry_After="3"))
    got = chat(stage.router, "main")
    assert (got.status_code, got.json(), got.headers["retry-after"]) == (429, {"too": "many"}, "3")
    assert (served_by(got), stage.seen()) == ("last", (1, 1, 1))


def test_streams_fall_back_before_their_first_byte_only(stage: Stage) -> None:
    """A stream of the other model passes as it comes; one that breaks off later is cut, and sent to no one else."""

    def streams(seen: Seen, reply: Reply) -> None:
        reply.begin()
        for piece in (b"data: 1\n\n", b"data: [DONE]\n\n"):
            reply.chunk(piece)
        reply.chunk()

    stage.answer(fails(503), streams)
    got = chat(stage.router, "main", stream=True)
    assert (got.text, served_by(got)) == ("data: 1\n\ndata: [DONE]\n\n", "spare")

    def breaks(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"data: 1\n\n")
        reply.raw(b"")

    stage.answer(breaks)
    with pytest.raises(requests.RequestException):
        chat(stage.router, "main", stream=True)
    assert stage.seen() == (1, 0, 0)


def test_infer_names_the_model_that_served(stage: Stage) -> None:
    """`modelRef` and the header agree; the output is the other model's, and its 4xx goes no further."""
    spoken = b'{"choices": [{"message": {"content": "from spare"}}]}'
    stage.answer(fails(500), lambda seen, reply: reply.send(200, spoken))
    got = stage.router.infer(members={"model": "main"})
    assert (got.status_code, got.json()["modelRef"], got.json()["output"]) == (200, "spare", "from spare")
    assert served_by(got) == "spare"
    for status, body in ((400, b"{}"), (500, TOO_LONG)):
        stage.answer(fails(status, body))
        got = stage.router.infer(members={"model": "main"})
        assert (got.status_code, got.json()["code"], served_by(got)) == (status, "upstream_error_response", "main")
        assert stage.seen() == (1, 0, 0)


def test_v2_has_the_other_name_in_its_path(stage: Stage) -> None:
    """The name in the path becomes the fallback's, and the body passes untouched."""
    stage.answer(fails(503))
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", "data": [1e0]}]}'
    got = requests.post(f"{stage.router.url}/v2/models/tensors/infer?a=1", data=body, timeout=20)
    assert (got.status_code, served_by(got)) == (200, "others")
    assert (stage.spare.seen[0].path, stage.spare.seen[0].body) == ("/v2/models/small/infer?a=1", body)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
def test_what_is_said_of_one_model_comes_from_no_other(stage: Stage, path: str) -> None:
    """Each model has a tokenizer of its own: the client gets the error of the model that it names."""
    stage.answer(fails(503))
    got = requests.post(stage.router.url + path, json={"model": "main"}, timeout=20)
    assert (got.status_code, served_by(got), stage.seen()) == (503, None, (1, 0, 0))


def test_listed_path_falls_back_on_models_that_list_it(stage: Stage) -> None:
    """What a route lists is a path of that model: another one gets the request only if its route lists the path too."""
    for path, name, expected in (
        ("/v1/custom", "lists", (200, "lists-too", (1, 1, 0))),
        ("/v1/own", "lists", (503, None, (1, 0, 0))),
        (CHAT, "lists", (200, "lists-too", (1, 1, 0))),
    ):
        stage.answer(fails(503))
        got = requests.post(stage.router.url + path, json={"model": name}, timeout=20)
        assert (got.status_code, served_by(got), stage.seen()) == expected
    stage.answer(fails(503), fails(503))
    got = requests.post(f"{stage.router.url}/v1/custom", json={"model": "lists-too"}, timeout=20)
    assert (got.status_code, served_by(got), stage.seen()) == (503, None, (0, 1, 0))


def test_places_of_both_models_are_exact(stage: Stage) -> None:
    """The first model's place is free while the fallback works. The fallback's limit holds; then it is skipped."""
    hold = Hold()
    stage.answer(fails(500), hold)
    crowd = Crowd(lambda n: served_by(chat(stage.router, "single")))
    try:
        for count in (1, 2):  # one after the other: the model has one place, so it was free again
            crowd.send(1)
            stage.spare.wait_seen(count)
        assert [served_by(chat(stage.router, "single")) for _ in range(3)] == ["last"] * 3
        assert stage.spare.inside == 2
        direct = chat(stage.router, "narrow", {"X-Request-Id": "direct"})
        assert (direct.status_code, direct.json()["error"]["code"]) == (429, "model_limit_reached")
        assert stage.router.logged("direct")["rejection"] == "model_limit_reached"
    finally:
        hold.release()
        crowd.join()
    assert crowd.counts() == {"narrow": 2}
    until(lambda: stage.router.metrics()["router_inflight_requests"] == 0, "every permit is back")
    assert served_by(chat(stage.router, "single")) == "narrow", "and so is every place"


def test_a_full_model_overflows_into_another_one_if_its_route_says_so(stage: Stage) -> None:
    """`model_limit_reached` among `fallback_on`: what the model has no place for goes on at once."""
    hold = Hold()
    stage.answer(hold)
    crowd = Crowd(lambda n: served_by(chat(stage.router, "full"))).send(1)
    try:
        stage.main.wait_seen(1)
        rejected = 'router_rejected_requests_total{reason="model_limit_reached"}'
        before = stage.router.metrics()[rejected]
        got = chat(stage.router, "full", {"X-Request-Id": "overflows"})
        assert (got.status_code, served_by(got)) == (200, "spare")
        assert "rejection" not in stage.router.logged("overflows")
        assert stage.router.metrics()[rejected] == before, "it was served, so it was not rejected"
    finally:
        hold.release()
        crowd.join()
    assert crowd.counts() == {"full": 1}


def test_all_of_it_ends_by_the_total_time_of_the_first_model(stage: Stage) -> None:
    """`total_s` of the first model bounds every attempt, whatever the fallback's own timeouts are."""
    stage.answer(fails(500), lambda seen, reply: reply.wait_hung_up())
    began = time.monotonic()
    got = chat(stage.router, "brief")
    assert (got.status_code, got.json()["error"]["code"], served_by(got)) == (504, "upstream_timeout", "spare")
    assert 3.9 <= time.monotonic() - began < 20  # `first_byte_s` of the fallback is 300 s


def test_a_request_that_waited_in_vain_waits_for_another_model(
    start: Callable[..., Router], serve: Callable[..., Upstream], routes: Callable[..., str]
) -> None:
    """`queue_timeout` among `fallback_on`: it waits once more. Nothing is held after that, and it is rejected once."""
    hold = Hold()
    upstream = serve(hold)
    reasons = {"fallback": ["spare"], "fallback_on": ["queue_timeout"]}
    models = [model("main", upstream.url, **reasons), model("spare", upstream.url, max_concurrency=1)]
    settings = {"MAX_CONCURRENCY": 1, "QUEUE_SIZE": 5, "QUEUE_TIMEOUT_MS": 300}
    router = start(ROUTES_FILE=routes(*models), **settings)
    crowd = Crowd(lambda n: chat(router, "main").status_code).send(1)
    upstream.wait_seen(1)
    began = time.monotonic()
    got = chat(router, "main")
    assert (got.status_code, got.json()["error"]["code"], served_by(got)) == (429, "queue_timeout", "spare")
    assert time.monotonic() - began >= 0.6
    series = 'router_fallbacks_total{model="main",reason="queue_timeout",to="spare"}'
    until(lambda: router.metrics().get(series) == 1, "it is counted")
    assert router.metrics()['router_rejected_requests_total{reason="queue_timeout"}'] == 1
    hold.release()
    crowd.join()
    assert crowd.counts() == {200: 1}
    for name in ("spare", "main"):
        until(lambda: router.metrics()["router_inflight_requests"] == 0, "the permit is back")
        assert chat(router, name).status_code == 200, "every place was given back"
