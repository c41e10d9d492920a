"""Requests reach the model servers that they should, in the words that those speak, and nothing else gets through."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat
from tests.support.router import Router, until
from tests.support.upstream import Hold, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
ShareRouted = Callable[..., tuple[Router, Upstream]]

COMPLETION = b'{"choices":[{"message":{"content":"said"}}]}'


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
def test_openai_requests_pass_untouched(share_routed: ShareRouted, path: str) -> None:
    """Path, query and body reach the server byte for byte, and its status, headers and body come back the same way."""
    body = b'{ "model":"m",  "x": 1.50, "unicode":"\\u00fc", "prompt" : [1,2] }'
    answer = b'{"ok" :  true}'
    router, upstream = share_routed(lambda seen, reply: reply.send(206, answer, X_Model="yes", Set_Cookie="a=b"))
    got = requests.post(f"{router.url}{path}?a=b%20c", data=body, headers={"X-Type": "text/x"}, timeout=20)
    assert (got.status_code, got.content, got.headers["X-Model"]) == (206, answer, "yes")
    assert got.cookies["a"] == "b"
    (seen,) = upstream.seen
    assert (seen.method, seen.path, seen.body) == ("POST", f"{path}?a=b%20c", body)
    assert seen.headers["x-type"] == "text/x"


def test_v2_requests_pass_untouched(start: Start, serve: Serve) -> None:
    """Binary tensors too: what follows the JSON is not looked at, and no type is invented in either direction."""
    upstream = serve(lambda seen, reply: reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x00\xff\n"))
    router = start(BACKENDS=upstream.url, BACKEND_PROTOCOL="v2", MODEL_REF="m")
    head = b'{"inputs":[]}'
    request = requests.Request(
        "POST",
        f"{router.url}/v2/models/m/versions/7/infer",
        data=head + b"\x00\x01\xfe",
        headers={"Inference-Header-Content-Length": str(len(head))},
    ).prepare()
    request.headers.pop("Content-Type", None)
    got = requests.Session().send(request, timeout=20)
    assert (got.status_code, got.content) == (200, b"\x00\xff\n")
    assert "Content-Type" not in got.headers
    (seen,) = upstream.seen
    assert (seen.path, seen.body) == ("/v2/models/m/versions/7/infer", head + b"\x00\x01\xfe")
    assert seen.headers["inference-header-content-length"] == str(len(head))
    assert "content-type" not in seen.headers


def test_infer_is_put_in_the_servers_words(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """A chat for an OpenAI-compatible server, a tensor for a v2 server; the answer has what they put out."""
    tensors = [{"name": "y", "shape": [1], "datatype": "INT64", "data": [2]}]
    talks = serve(lambda seen, reply: reply.send(200, COMPLETION))
    counts = serve(lambda seen, reply: reply.send(200, json.dumps({"outputs": tensors}).encode()))
    path = routes(
        {"name": "t", "endpoints": [talks.url], "upstream_model": "theirs"},
        {"name": "c", "protocol": "v2", "endpoints": [counts.url]},
    )
    router = start(ROUTES_FILE=path)
    said = router.infer("hello", members={"temperature": 0.5, "stream": True}).json()
    assert (said["modelRef"], said["prompt"], said["output"]) == ("t", "hello", "said")
    assert json.loads(talks.seen[0].body) == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
    }
    counted = router.infer("hello", members={"model": "c"}).json()
    assert (counted["modelRef"], counted["output"]) == ("c", tensors)
    assert counts.seen[0].path == "/v2/models/c/infer"
    assert json.loads(counts.seen[0].body)["inputs"] == [
        {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hello"]}
    ]
    own = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5]}]
    router.infer("hello", members={"model": "c", "inputs": own})
    assert json.loads(counts.seen[1].body)["inputs"] == own


def test_infer_passes_the_servers_refusal_on(share_routed: ShareRouted) -> None:
    """Its status, its words and its Retry-After, under a code of ours."""
    router, _ = share_routed(lambda seen, reply: reply.send(422, b'{"error":"no such option"}', Retry_After="7"))
    got = router.infer()
    assert (got.status_code, got.json()["code"], got.headers["Retry-After"]) == (422, "upstream_error_response", "7")
    assert "no such option" in got.json()["detail"]


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 502, "upstream_broken"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 502, "upstream_broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 502, "upstream_broken"),
        (b"HTTP/1.1 201 Made\r\nContent-Length: %d\r\n\r\n%b" % (len(COMPLETION), COMPLETION), 200, None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (65 << 20), 502, "upstream_broken"),
        (b"HTTP/1.1 503 No\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n", 503, "upstream_error_response"),
    ],
    ids=["nothing", "elsewhere", "no output", "made", "too much", "a date"],
)
def test_infer_needs_an_output(share_routed: ShareRouted, answer: bytes, status: int, code: str | None) -> None:
    """A success has one; whatever else the server says is an error, and never looks like a success."""
    router, _ = share_routed(lambda seen, reply: reply.raw(answer))
    got = router.infer()
    assert (got.status_code, got.json().get("code")) == (status, code)
    assert ("Retry-After" in got.headers) == (status == 503)


def test_body_that_cannot_be_renamed_is_bad_input(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """It is a 400, and leaves no count behind."""
    upstream = serve()
    router = start(ROUTES_FILE=routes({"name": "m", "aliases": ["al"], "endpoints": [upstream.url]}))
    for _ in range(5):
        got = requests.post(router.url + CHAT, data=b'{"model":"al","\xff":1}', timeout=20)
        assert (got.status_code, got.json()["error"]["code"]) == (400, "invalid_request")
    for count in (f'router_endpoint_inflight{{endpoint="{upstream.url}"}}', "router_inflight_requests"):
        until(lambda: router.metrics()[count] == 0, "what was counted is taken back")


def test_credentials_end_at_the_router(start: Start, serve: Serve, routes: Callable[..., str], tmp_path: Path) -> None:
    """The client's don't reach the server unless the route says so; an endpoint's own do, and no log shows them."""
    one, two, three = serve(), serve(), serve()
    secret = tmp_path / "token"
    secret.write_text("FILE-SECRET\n")
    path = routes(
        {"name": "env", "endpoints": [{"url": one.url, "credential_env": "TOKEN_OF_ONE"}]},
        {"name": "file", "endpoints": [{"url": two.url, "credential_file": str(secret)}]},
        {"name": "open", "endpoints": [three.url], "forward_credentials": True},
    )
    router = start(ROUTES_FILE=path, TOKEN_OF_ONE="ENV-SECRET", ACCESS_LOG="all", LOG_LEVEL="debug")
    theirs = {"Authorization": "Bearer CLIENT-SECRET", "Cookie": "c=CLIENT-SECRET", "X-Api-Key": "CLIENT-SECRET"}
    for model in ("env", "file", "open"):
        assert chat(router, model, headers=theirs).status_code == 200
    assert one.seen[0].headers["authorization"] == "Bearer ENV-SECRET"
    assert two.seen[0].headers["authorization"] == "Bearer FILE-SECRET"
    assert three.seen[0].headers["authorization"] == "Bearer CLIENT-SECRET"
    for seen in (one.seen[0], two.seen[0]):
        assert "CLIENT-SECRET" not in str(seen.headers)
    assert three.seen[0].headers["cookie"] == "c=CLIENT-SECRET"
    until(lambda: router.log().count(CHAT) >= 3, "the requests are logged")
    assert "SECRET" not in router.log()
    secret.write_text("NEW-SECRET")
    until(lambda: chat(router, "file") and two.seen[-1].headers["authorization"] == "Bearer NEW-SECRET", "it is read")


def test_headers_of_a_proxy(share_routed: ShareRouted) -> None:
    """What a proxy adds, passes on and keeps to itself, over the wire."""
    router, upstream = share_routed(lambda seen, reply: reply.send(200, b"{}", X_Request_Id="theirs", Via="1.0 inner"))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {
        "X-Request-Id": "id-1",
        "traceparent": trace,
        "X-Forwarded-For": "1.2.3.4",
        "Via": "1.1 outer",
        "Connection": "keep-alive, X-Private",
        "X-Private": "x",
        "TE": "trailers",
    }
    got = chat(router, headers=sent)
    seen = upstream.seen[0].headers
    assert (seen["x-request-id"], seen["traceparent"]) == ("id-1", trace)
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("1.2.3.4, 127.0.0.1", "http")
    assert seen["via"] == "1.1 outer, 1.1 inference-router"
    assert seen["host"] == upstream.url.removeprefix("http://")
    assert not {"x-private", "te", "connection"} & seen.keys()
    assert got.headers["X-Request-Id"] == "id-1"
    assert got.headers["Via"] == "1.0 inner, 1.1 inference-router"


def test_model_is_found_by_name_alias_or_default(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """The body's `model` picks the route; its servers hear the name that they know; the other bytes stay."""
    one, two = serve(), serve()
    path = routes(
        {"name": "one", "aliases": ["uno", "meta/uno"], "endpoints": [one.url]},
        {"name": "two", "endpoints": [two.url], "upstream_model": "second"},
        default_model="two",
    )
    router = start(ROUTES_FILE=path)
    body = b'{"model": "uno", "x": 1.50, "y": "\\u00fc"}'
    requests.post(router.url + CHAT, data=body, timeout=20)
    assert json.loads(one.seen[0].body)["model"] == "one"
    assert b"1.50" in one.seen[0].body
    assert b"\\u00fc" in one.seen[0].body
    assert chat(router, None).status_code == 200
    assert json.loads(two.seen[0].body)["model"] == "second"
    models = requests.get(f"{router.url}/v1/models", timeout=20).json()
    assert [card["id"] for card in models["data"]] == ["one", "uno", "meta/uno", "two"]
    assert requests.get(f"{router.url}/v1/models/meta/uno", timeout=20).json()["id"] == "meta/uno"


def test_errors_speak_the_clients_protocol(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """OpenAI's error object under /v1, a member `error` under /v2, a problem document elsewhere; no permit is taken."""
    path = routes(
        {"name": "o", "endpoints": [serve().url]}, {"name": "v", "protocol": "v2", "endpoints": [serve().url]}
    )
    router = start(ROUTES_FILE=path, MAX_BODY_BYTES=2000)
    for body, status, code in (
        ({"model": "x"}, 404, "model_not_found"),
        ({"model": "v"}, 400, "protocol_mismatch"),
        ({"model": 1}, 400, "invalid_request"),
        ({"model": "o", "x": "x" * 2000}, 413, "body_too_large"),
    ):
        got = requests.post(router.url + CHAT, json=body, timeout=20)
        assert (got.status_code, got.json()["error"]["code"]) == (status, code)
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    for url, status, code in (
        ("/v2/models/x/infer", 404, "model_not_found"),
        ("/v2/models/o/infer", 400, "protocol_mismatch"),
        ("/v2/models/v/infer", 400, "invalid_request"),
    ):
        got = requests.post(router.url + url, data=b"{}", timeout=20)
        assert (got.status_code, got.json()["code"]) == (status, code)
        assert got.json()["error"] == got.json()["detail"]
    assert router.infer(members={"model": "x"}).json()["code"] == "model_not_found"
    assert router.metrics()["router_queue_wait_seconds_count"] == 0


def test_versions_share_by_weight_and_can_be_pinned(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """A canary gets its share; who pins a version, by header or by a v2 path, gets that one, weight 0 included."""
    old, new, test = serve(), serve(), serve()
    path = routes(
        {
            "name": "m",
            "protocol": "v2",
            "versions": [
                {"name": "old", "weight": 3, "endpoints": [old.url]},
                {"name": "new", "weight": 1, "endpoints": [new.url], "upstream_version": "9"},
                {"name": "test", "weight": 0, "endpoints": [test.url]},
            ],
        }
    )
    router = start(ROUTES_FILE=path, MAX_CONCURRENCY=100)
    session = requests.Session()

    def infer(path: str = "/v2/models/m/infer", **headers: str) -> int:
        body = b'{"inputs":[]}'
        return session.post(router.url + path, data=body, headers=headers, timeout=20).status_code

    for _ in range(200):
        assert infer() == 200
    assert len(test.seen) == 0
    assert 20 <= len(new.seen) <= 85  # 50 of 200; 5 standard deviations are 31
    assert {seen.path for seen in old.seen} == {"/v2/models/m/infer"}
    assert {seen.path for seen in new.seen} == {"/v2/models/m/versions/9/infer"}
    for pin in ({"path": "/v2/models/m/versions/test/infer"}, {"X-Model-Version": "test"}):
        for _ in range(5):
            assert infer(**pin) == 200
    assert [seen.path for seen in test.seen] == ["/v2/models/m/infer"] * 10
    assert infer("/v2/models/m/versions/x/infer") == 404
    assert requests.get(f"{router.url}/v2/models/m/versions/new/ready", timeout=20).status_code == 200
    assert requests.get(f"{router.url}/v2/models/m/versions/x/ready", timeout=20).status_code == 404


def test_model_has_a_limit_of_its_own(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """Exact over the workers, within the cap; the other model goes on, and everything comes back."""
    hold = Hold()
    small, big = serve(hold), serve()
    path = routes(
        {"name": "small", "endpoints": [small.url], "max_concurrency": 3}, {"name": "big", "endpoints": [big.url]}
    )
    router = start(ROUTES_FILE=path, MAX_CONCURRENCY=10, WEB_CONCURRENCY=3)
    crowd = Crowd(lambda _: chat(router, "small").status_code).send(3)
    small.wait_seen(3)
    refused = [chat(router, "small") for _ in range(10)]
    assert {got.status_code for got in refused} == {429}
    assert refused[0].json()["error"]["code"] == "model_limit_reached"
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert chat(router, "big").status_code == 200
    until(lambda: router.metrics()["router_inflight_requests"] == 3, "the permit of the other model is back")
    hold.release()
    assert crowd.join().counts() == {200: 3}
    assert len(small.seen) == 3
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "every permit is back, and so is every place")
    assert chat(router, "small").status_code == 200


@pytest.mark.parametrize("way", ["stream", "v2", "embeddings"])
def test_every_protocol_counts_against_the_one_cap(share_routed: ShareRouted, way: str) -> None:
    """The permit is held until the last byte."""
    hold = Hold()
    router, upstream = share_routed(hold, BACKEND_PROTOCOL="v2" if way == "v2" else "openai", MAX_CONCURRENCY=1)
    url = router.url + {"stream": CHAT, "v2": "/v2/models/m/infer", "embeddings": "/v1/embeddings"}[way]
    body = {"model": "m", "stream": True, "inputs": []}
    crowd = Crowd(lambda _: requests.post(url, json=body, timeout=30).status_code).send(1)
    upstream.wait_seen(1)
    assert requests.post(url, json=body, timeout=20).status_code == 429
    hold.release()
    assert crowd.join().counts() == {200: 1}
    until(lambda: router.metrics()["router_inflight_requests"] == 0, "the permit is back, after the last byte")
    assert requests.post(url, json=body, timeout=20).status_code == 200


def test_requests_are_spread_within_one(start: Start, serve: Serve) -> None:
    """31 requests over three workers and three endpoints: 10, 10 and 11, because all workers count in one place."""
    hold = Hold()
    upstreams = [serve(hold) for _ in range(3)]
    router = start(
        BACKENDS=",".join(upstream.url for upstream in upstreams), MODEL_REF="m", MAX_CONCURRENCY=50, WEB_CONCURRENCY=3
    )
    crowd = Crowd(lambda _: chat(router).status_code).send(31)
    until(lambda: sum(upstream.inside for upstream in upstreams) == 31, "all are there")
    assert sorted(upstream.inside for upstream in upstreams) == [10, 10, 11]
    shown = [router.metrics()[f'router_endpoint_inflight{{endpoint="{upstream.url}"}}'] for upstream in upstreams]
    assert sorted(shown) == [10, 10, 11]
    hold.release()
    assert crowd.join().counts() == {200: 31}
    for upstream in upstreams:
        gauge = f'router_endpoint_inflight{{endpoint="{upstream.url}"}}'
        until(lambda: router.metrics()[gauge] == 0, "nothing is with the endpoint")


def test_worker_that_dies_is_counted_at_no_endpoint(start: Start, serve: Serve) -> None:
    """SIGKILL: what it had in flight with endpoints is forgotten with its row."""
    hold = Hold()
    upstream = serve(hold)
    router = start(BACKENDS=upstream.url, MODEL_REF="m", WEB_CONCURRENCY=1)
    crowd = Crowd(lambda _: chat(router).status_code).send(4)
    upstream.wait_seen(4)
    (worker,) = router.workers()
    router.signal(9, worker)  # type: ignore[arg-type]
    crowd.join()
    gauge = f'router_endpoint_inflight{{endpoint="{upstream.url}"}}'
    until(lambda: router.ready() and router.metrics()[gauge] == 0, "nothing is with the endpoint")
    hold.release()


@pytest.mark.parametrize("balancing", ["session", "prefix"])
def test_keys_stay_with_their_endpoint(start: Start, serve: Serve, routes: Callable[..., str], balancing: str) -> None:
    """Whichever worker takes it, a session, or a prompt's beginning, goes to one endpoint; all have some."""

    def name(seen: Seen, reply: Reply) -> None:
        reply.send(200, b"{}", X_Port=seen.headers["host"])

    upstreams = [serve(name) for _ in range(3)]
    more = {"session_header": "X-Session"} if balancing == "session" else {"prefix_bytes": 40}
    path = routes({"name": "m", "balancing": balancing, "endpoints": [upstream.url for upstream in upstreams], **more})
    router = start(ROUTES_FILE=path, WEB_CONCURRENCY=3)
    went: dict[str, Counter[str]] = {}
    for number in range(120):
        key = f"k{number % 40}"
        messages = [{"role": "system", "content": key * 20}, {"role": "user", "content": str(number)}]
        got = chat(router, headers={"X-Session": key}, messages=messages)
        went.setdefault(key, Counter())[got.headers["X-Port"]] += 1
    assert all(len(ports) == 1 for ports in went.values())
    assert len({port for ports in went.values() for port in ports}) == 3


def test_session_stays_with_its_version(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """Also while a canary takes half of the sessions."""
    one, two = serve(), serve()
    versions = [{"name": "a", "endpoints": [one.url]}, {"name": "b", "endpoints": [two.url]}]
    path = routes({"name": "m", "balancing": "session", "session_header": "X-Session", "versions": versions})
    router = start(ROUTES_FILE=path)
    for number in range(20):
        for _ in range(3):
            assert chat(router, headers={"X-Session": f"s{number}"}).status_code == 200
    sessions = [Counter(seen.headers["x-session"] for seen in upstream.seen) for upstream in (one, two)]
    assert not sessions[0].keys() & sessions[1].keys()
    assert all(counted for counted in sessions)


def test_session_cookie(start: Start, serve: Serve, routes: Callable[..., str]) -> None:
    """A cookie serves as well as a header."""
    upstreams = [serve() for _ in range(3)]
    path = routes(
        {
            "name": "m",
            "balancing": "session",
            "session_cookie": "sid",
            "endpoints": [upstream.url for upstream in upstreams],
        }
    )
    router = start(ROUTES_FILE=path)
    for _ in range(12):
        assert chat(router, headers={"Cookie": "a=b; sid=42"}).status_code == 200
    assert sorted(len(upstream.seen) for upstream in upstreams) == [0, 0, 12]
