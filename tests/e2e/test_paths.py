"""Every path against real workers: what reaches the model server, whose credentials, and in which shape errors come."""

import http.client
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from app.errors import Overload
from app.protocols import anthropic, openai
from tests.support.clients import Crowd, read_all
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Hold, Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routed = Callable[..., tuple[Router, Upstream]]
Routes = Callable[..., str]

MESSAGES = "/v1/messages"
BY_BODY = [*openai.PATHS, *anthropic.PATHS]
BODY = b'{"model":"m", "max_tokens":1.50e1,"messages":[]}'


@pytest.fixture
def routed(share_routed: Routed) -> tuple[Router, Upstream]:
    """A router with one worker before the only server of the model `m`."""
    return share_routed(WEB_CONCURRENCY=1)


def post(url: str, body: Any = BODY, **headers: str) -> requests.Response:
    """A POST of these bytes, or of this as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(url, data=data, headers={"Content-Type": "application/json", **fields}, timeout=20)


def ask(router: Router, method: str, target: str, fields: str = "") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response to a request whose target no library would send."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as sock:
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: 0\r\n\r\n".encode())
        response = http.client.HTTPResponse(sock, method=method)
        response.begin()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def anthropic_error(response: requests.Response) -> tuple[int, str, str]:
    """Status, type and code of an error in Anthropic's shape; a rejection says beside it which limit was reached."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"type", "error"}
    assert document["type"] == "error"
    further = set(Overload._fields) if response.status_code == 429 else set()
    assert set(document["error"]) == {"type", "message", "code", *further}
    return response.status_code, document["error"]["type"], document["error"]["code"]


# What reaches the model server.


@pytest.mark.parametrize("path", BY_BODY)
def test_body_passes_byte_for_byte(routed: tuple[Router, Upstream], path: str) -> None:
    """Path, query and body are the client's own at every path whose body names the model."""
    router, upstream = routed
    assert post(f"{router.url}{path}?beta=true").status_code == 200
    (seen,) = upstream.seen
    assert (seen.method, seen.path, seen.body) == ("POST", f"{path}?beta=true", BODY)
    served = f'router_requests_total{{code="200",model="m",route="{path}"}}'
    until(lambda: router.metrics().get(served), "it is counted")


def test_name_at_the_endpoints_is_put_in(start: Start, serve: Serve, routes: Routes) -> None:
    """Everywhere the model has its endpoints' name, in the body or in the path, and all else keeps its bytes."""
    upstream = serve()
    endpoints = {"endpoints": [upstream.url], "upstream_model": "theirs"}
    models = [
        {"name": "m", **endpoints, "aliases": ["n"], "paths": ["/v1/custom"]},
        {"name": "t", "protocol": "v2", **endpoints, "upstream_version": "3"},
    ]
    router = start(ROUTES_FILE=routes(*models), WEB_CONCURRENCY=1)
    for path in (*BY_BODY, "/v1/custom"):
        for given, sent in (
            (BODY, BODY.replace(b'"m"', b'"theirs"')),
            (b'{"model" : "n"}', b'{"model" : "theirs"}'),
            (b"{}", b'{"model":"theirs"}'),
        ):
            upstream.seen.clear()
            assert post(router.url + path, given).status_code == 200
            assert [(seen.path, seen.body) for seen in upstream.seen] == [(path, sent)]
    upstream.seen.clear()
    for action in ("generate", "generate_stream"):
        assert post(f"{router.url}/v2/models/t/{action}?a", {"text_input": "x"}).status_code == 200
    for action in ("config", "stats"):
        assert requests.get(f"{router.url}/v2/models/t/{action}", timeout=20).status_code == 200
        assert requests.get(f"{router.url}/v2/models/t/versions/2/{action}", timeout=20).status_code == 200
    prefix = "/v2/models/theirs/versions"
    assert [(seen.method, seen.path) for seen in upstream.seen] == [
        ("POST", f"{prefix}/3/generate?a"),
        ("POST", f"{prefix}/3/generate_stream?a"),
        *(("GET", f"{prefix}/3/{action}") for action in ("config", "config", "stats", "stats")),
    ]


@pytest.mark.parametrize("path", BY_BODY)
@pytest.mark.parametrize(
    "body", [b'{"model":"m","model":"x"}', b'{"model":"m","Model":"x"}', b'{"model":5}', b"[]", b"{", b""]
)
def test_body_that_can_be_read_in_two_ways_is_refused(routed: tuple[Router, Upstream], path: str, body: bytes) -> None:
    """A second model, or none that can be read, is a 400 in the path's shape, before any model server sees it."""
    router, upstream = routed
    response = post(router.url + path, body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert (response.json().get("type") == "error") == (path in anthropic.PATHS)
    assert upstream.seen == []


def test_text_for_triton_must_be_json(start: Start, serve: Serve) -> None:
    """What no parser can read takes no permit and reaches no server; compressed, only the server can read it."""
    upstream = serve()
    router = start(BACKENDS=upstream.url, BACKEND_PROTOCOL="v2", MODEL_REF="m", WEB_CONCURRENCY=1)
    for action in ("generate", "generate_stream"):
        upstream.seen.clear()
        url = f"{router.url}/v2/models/m/{action}"
        assert post(url, b"{").json()["code"] == "invalid_request"
        assert post(url, b"[]").status_code == 400
        assert upstream.seen == []
        assert post(url, b"\x1f\x8b", Content_Encoding="gzip").status_code == 200
        assert post(url, b'{"text_input":"x"}', Content_Type="application/x-www-form-urlencoded").status_code == 200
        assert [seen.body for seen in upstream.seen] == [b"\x1f\x8b", b'{"text_input":"x"}']
        assert upstream.seen[1].headers["content-type"] == "application/json"


def stream(seen: Seen, reply: Reply) -> None:
    """Events, or an error of the server's own."""
    if b'"bad"' in seen.body:
        reply.send(529, b'{"type":"error","error":{"type":"overloaded_error","message":"theirs"}}')
        return
    reply.begin()
    reply.chunk(b"event: message_start\ndata: {}\n\n")
    reply.chunk(b"event: message_stop\ndata: {}\n\n")
    reply.chunk()


def test_events_and_errors_of_the_server_pass(share_routed: Routed) -> None:
    """A stream passes as it is, and so does an error of the model server's own, whatever its status."""
    router, _ = share_routed(stream, WEB_CONCURRENCY=1)
    answer = post(router.url + MESSAGES, {"model": "m", "stream": True})
    assert answer.content == b"event: message_start\ndata: {}\n\nevent: message_stop\ndata: {}\n\n"
    assert answer.headers["content-type"] == "text/event-stream"
    refused = post(router.url + MESSAGES, {"model": "m", "messages": "bad"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (529, "theirs")


# Credentials.


def test_key_of_the_client_is_its_credential(start: Start, serve: Serve, routes: Routes) -> None:
    """`x-api-key` is dropped, passed on, or replaced by the endpoint's, as Authorization is. Other headers pass."""
    upstream = serve()
    models: list[dict[str, Any]] = [
        {"name": "drops", "endpoints": [upstream.url]},
        {"name": "forwards", "endpoints": [upstream.url], "forward_credentials": True},
        {"name": "replaces", "endpoints": [{"url": upstream.url, "credential_env": "KEY_OF_ENDPOINT"}]},
    ]
    given = {
        "x_api_key": "client-key",
        "Authorization": "Bearer client-token",
        "anthropic_version": "2023-06-01",
        "anthropic_beta": "tools-2024-04-04",
    }
    models[2]["endpoints"][0]["url"] += "/with-a-key"
    router = start(ROUTES_FILE=routes(*models), WEB_CONCURRENCY=1, KEY_OF_ENDPOINT="endpoint-key")
    seen = {}
    for name in ("drops", "forwards", "replaces"):
        assert post(router.url + MESSAGES, {"model": name}, **given).status_code == 200
        seen[name] = upstream.seen[-1].headers
    keys = {name: (fields.get("x-api-key"), fields.get("authorization")) for name, fields in seen.items()}
    assert keys == {
        "drops": (None, None),
        "forwards": ("client-key", "Bearer client-token"),
        "replaces": (None, "Bearer endpoint-key"),
    }
    for fields in seen.values():
        assert (fields["anthropic-version"], fields["anthropic-beta"]) == ("2023-06-01", "tools-2024-04-04")
    assert "client-key" not in router.log()


# Errors in Anthropic's shape.


def test_errors_have_anthropics_shape(routed: tuple[Router, Upstream]) -> None:
    """Every refusal of the router under /v1/messages has the shape and the type that Anthropic's clients read."""
    router, upstream = routed
    url = router.url + MESSAGES
    assert anthropic_error(post(url, {"model": "x"})) == (404, "not_found_error", "model_not_found")
    assert anthropic_error(post(url, b"{")) == (400, "invalid_request_error", "invalid_request")
    assert anthropic_error(post(url, b"x" * (5 << 20))) == (413, "request_too_large", "body_too_large")
    multipart = post(url, Content_Type="multipart/form-data")
    assert anthropic_error(multipart) == (415, "invalid_request_error", "unsupported_media_type")
    compressed = post(url, b"\x1f\x8b", Content_Encoding="gzip")
    assert anthropic_error(compressed) == (415, "invalid_request_error", "unsupported_media_type")
    for method in ("GET", "PUT", "DELETE"):
        refused = requests.request(method, url, timeout=20)
        assert anthropic_error(refused) == (405, "invalid_request_error", "method_not_allowed")
        assert set(refused.headers["allow"].split(", ")) == {"POST", "OPTIONS"}
    for below in ("/batches", "/count_tokens/x", "/"):
        assert anthropic_error(post(url + below)) == (404, "not_found_error", "not_found")
    assert post(f"{router.url}/v1/messages_of_mine").json()["error"]["code"] == "not_found"
    assert upstream.seen == []


def test_overload_has_anthropics_shape(start: Start, serve: Serve) -> None:
    """429 with Retry-After at the cap, 503 without an endpoint and while the server drains, 502 and 504."""
    hold = Hold()
    upstream = serve(hold)
    router = start(BACKENDS=upstream.url, MODEL_REF="m", WEB_CONCURRENCY=1, MAX_CONCURRENCY=1)
    url = router.url + MESSAGES
    crowd = Crowd(lambda _: post(url).status_code).send(1)
    upstream.wait_seen(1)
    for path in anthropic.PATHS:
        rejected = post(router.url + path)
        assert anthropic_error(rejected) == (429, "rate_limit_error", "limit_reached")
        assert int(rejected.headers["retry-after"]) >= 1
    router.signal(signal.SIGTERM)
    refused = (429, "rate_limit_error", "limit_reached"), (503, "overloaded_error", "draining")
    until(lambda: refused.index(anthropic_error(post(url))), "it drains")
    hold.release()
    assert set(crowd.join().answers.values()) == {200}


def test_failures_have_anthropics_shape(start: Start, serve: Serve, routes: Routes) -> None:
    """502, 503 and 504 for a model server that hangs up, that is ejected, and that says nothing; 400 for v2."""
    breaks = serve(lambda seen, reply: reply.raw(b""))
    silent = serve(Hold())
    ejected = {"consecutive_failures": 1, "max_share": 1, "base_s": 60}
    models = [
        {"name": "breaks", "endpoints": [breaks.url], "ejection": {"max_share": 0}},
        {"name": "gone", "endpoints": [breaks.url + "/gone"], "ejection": ejected, "retry_budget": 0},
        {"name": "silent", "endpoints": [silent.url], "timeouts": {"first_byte_s": 0.2}},
        {"name": "v2", "endpoints": [silent.url + "/v2s"], "protocol": "v2"},
    ]
    router = start(ROUTES_FILE=routes(*models), WEB_CONCURRENCY=1)
    asked = {name: post(router.url + MESSAGES, {"model": name}) for name in ("breaks", "gone", "silent", "v2")}
    assert anthropic_error(asked["breaks"]) == (502, "api_error", "upstream_broken")
    gone = post(router.url + MESSAGES, {"model": "gone"})
    assert anthropic_error(gone) == (503, "overloaded_error", "no_endpoint")
    assert anthropic_error(asked["silent"]) == (504, "timeout_error", "upstream_timeout")
    assert anthropic_error(asked["v2"]) == (400, "invalid_request_error", "protocol_mismatch")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/messages HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"POST /v1/messages?beta=true HTTP/1.1\r\n\r\n", 400),
        (b"POST http://h/v1/messages/count_tokens HTTP/1.1\r\nHost: h\r\nX Y: 1\r\n\r\n", 400),
        (b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: rot13\r\n\r\n", 501),
        (b"POST /v1/messages HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    ],
    ids=range(6),
)
def test_malformed_requests_have_anthropics_shape(routed: tuple[Router, Upstream], head: bytes, status: int) -> None:
    """What never becomes a request has the shape, too, if its line says where it was to go."""
    with socket.create_connection(("127.0.0.1", routed[0].port), timeout=20) as sock:
        sock.sendall(head)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["type"] == "error"
    assert document["error"]["code"] == "malformed_request"
    assert document["error"]["type"] == ("invalid_request_error" if status < 500 else "api_error")


def test_malformed_requests_elsewhere_are_problems(routed: tuple[Router, Upstream]) -> None:
    """Only these paths have the shape: others are read by clients of other APIs."""
    for path in (b"/v1/messages_of_mine", b"/v1/chat/completions", b"/x?/v1/messages"):
        with socket.create_connection(("127.0.0.1", routed[0].port), timeout=20) as sock:
            sock.sendall(b"POST %b HTTP/1.1\r\nHost: a b\r\n\r\n" % path)
            assert json.loads(read_all(sock).partition(b"\r\n\r\n")[2])["code"] == "malformed_request"


# Paths that a model lists in its route.


def test_listed_path_is_that_of_its_models(start: Start, serve: Serve, routes: Routes) -> None:
    """It is served for the models that list it, by name and alias, and a 404 for all others, in OpenAI's shape."""
    upstream = serve()
    models = [
        {"name": "m", "aliases": ["a"], "endpoints": [upstream.url], "paths": ["/v1/custom", "/custom"]},
        {"name": "n", "endpoints": [upstream.url]},
        {"name": "s", "protocol": "simulated", "paths": ["/v1/custom"]},
    ]
    router = start(ROUTES_FILE=routes(*models), WEB_CONCURRENCY=1, CORS_ORIGINS="*", SIMULATED_LATENCY_MS=0)
    for path in ("/v1/custom", "/custom"):
        for body in ({"model": "m"}, {"model": "a"}, {}):
            assert post(router.url + path, body).status_code == 200
    assert len(upstream.seen) == 6
    simulated = post(f"{router.url}/v1/custom", {"model": "s", "x": 1}).json()
    assert simulated == {"model": "s", "request": {"model": "s", "x": 1}}
    for path, name, code in (
        ("/v1/custom", "n", "not_found"),
        ("/custom", "s", "not_found"),
        ("/custom", "x", "model_not_found"),
        ("/v1/other", "m", "not_found"),
        ("/v1/custom/", "m", "not_found"),
    ):
        refused = post(router.url + path, {"model": name})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, code), path
    doubled = post(f"{router.url}/v1/custom", b'{"model":"m","MODEL":"n"}')
    assert doubled.json()["error"]["code"] == "invalid_request"
    assert len(upstream.seen) == 6
    served = 'router_requests_total{code="200",model="m",route="/v1/custom"}'
    until(lambda: router.metrics().get(served) == 3, "all are counted")
    for spelling in ("/v1/cust%6fm", "//custom", "/./custom", "/custom/.", "/%63ustom"):
        assert ask(router, "POST", spelling)[0] == 404, spelling
    for method in ("GET", "HEAD", "PUT", "FOO"):
        status, fields, _ = ask(router, method, "/v1/custom")
        assert (status, set(fields["allow"].split(", "))) == (405, {"POST", "OPTIONS"}), method
    preflight = "Origin: https://a\r\nAccess-Control-Request-Method: POST\r\n"
    status, fields, _ = ask(router, "OPTIONS", "/v1/custom", preflight)
    assert (status, fields["access-control-allow-methods"]) == (200, "POST")


def test_listed_paths_change_with_the_routes(start: Start, serve: Serve, routes: Routes) -> None:
    """A path that is added is served at once in every worker, and a path that is taken away is a 404 again."""
    upstream = serve()
    model = {"name": "m", "endpoints": [upstream.url]}
    path = Path(routes(model))
    router = start(ROUTES_FILE=str(path), WEB_CONCURRENCY=2)

    def asked() -> set[int]:
        return {post(f"{router.url}/v1/custom", {"model": "m"}).status_code for _ in range(10)}

    assert asked() == {404}
    routes({**model, "paths": ["/v1/custom"]})
    until(lambda: router.log().count("routes published") == 1, "it is published")
    assert asked() == {200}
    assert ask(router, "GET", "/v1/custom")[0] == 405
    routes({**model, "paths": ["/v1/another"]})
    until(lambda: router.log().count("routes published") == 2, "it is published")
    assert asked() == {404}
    assert {ask(router, "GET", "/v1/custom")[0] for _ in range(10)} == {404}
    assert post(f"{router.url}/v1/another", {"model": "m"}).status_code == 200


# What the router says itself.


def test_index_says_what_is_usable(start: Start, serve: Serve, routes: Routes) -> None:
    """Each name and version of v2's models is there with its state; `ready` leaves only those that can be used."""
    upstream, away = serve(), serve()
    away.well = False
    models = [
        {
            "name": "t",
            "aliases": ["u"],
            "protocol": "v2",
            "versions": [
                {"name": "1", "endpoints": [upstream.url]},
                {"name": "2", "endpoints": [away.url]},
            ],
            "health_check": {"interval_s": 0.1, "timeout_s": 20, "unhealthy_after": 1, "panic_threshold": 0},
        },
        {"name": "o", "endpoints": [upstream.url + "/o"]},
        {"name": "s", "protocol": "simulated"},
    ]
    router = start(ROUTES_FILE=routes(*models), WEB_CONCURRENCY=1)
    url = f"{router.url}/v2/repository/index"

    def states() -> dict[tuple[str, str], str]:
        return {(entry["name"], entry["version"]): entry["state"] for entry in post(url, b"").json()}

    expected = {
        ("t", "1"): "READY",
        ("u", "1"): "READY",
        ("s", "1"): "READY",
        ("t", "2"): "UNAVAILABLE",
        ("u", "2"): "UNAVAILABLE",
    }
    until(lambda: states() == expected, "the health checks have found it out")
    entries = post(url, b"").json()
    assert [bool(entry["reason"]) for entry in entries] == [entry["state"] != "READY" for entry in entries]
    ready = {(entry["name"], entry["version"]) for entry in post(url, {"ready": True}).json()}
    assert ready == {("t", "1"), ("u", "1"), ("s", "1")}
    assert post(url, {"ready": False}).json() == entries
    for body in (b"[]", b'{"ready":1}', b"{", b"\xff"):
        refused = post(url, body)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert requests.get(url, timeout=20).status_code == 405
    assert all("/repository" not in seen.path for seen in upstream.seen)


def test_statistics_are_those_of_all_workers(start: Start, serve: Serve) -> None:
    """Successes and failures are counted whichever worker saw them, questions about the model are not."""
    upstream = serve(lambda seen, reply: reply.send(500 if b"bad" in seen.body else 200))
    router = start(BACKENDS=upstream.url, BACKEND_PROTOCOL="v2", MODEL_REF="m", WEB_CONCURRENCY=2)

    def stats() -> Any:
        (entry,) = requests.get(f"{router.url}/v2/models/stats", timeout=20).json()["model_stats"]
        return entry

    def counts() -> tuple[int, int]:
        success, fail = (stats()["inference_stats"][name]["count"] for name in ("success", "fail"))
        return success, fail

    assert requests.get(f"{router.url}/v2/models/m/config", timeout=20).status_code == 200
    for body in [b'{"text_input":"x"}'] * 8 + [b'{"text_input":"bad"}'] * 3:
        post(f"{router.url}/v2/models/m/generate", body)
    until(lambda: counts() == (8, 3), "all are counted")
    entry = stats()
    assert (entry["name"], entry["version"], entry["inference_count"]) == ("m", "", 8)
    assert entry["inference_stats"]["success"]["ns"] > 0


def test_statistics_of_all_models_have_one_spelling(share_routed: Routed) -> None:
    """Where the name of a model may have escapes, the word that stands in its place may not."""
    router, _ = share_routed(WEB_CONCURRENCY=1)
    assert ask(router, "GET", "/v2/models/stats")[0] == 200
    for target in ("/v2/models/%73tats", "/v2//models/stats", "/v2/repositor%79/index", "http://h/v2/models/stat%73"):
        assert ask(router, "GET", target)[0] == 404, target
    status, _, body = ask(router, "HEAD", "/v2/models/stats")
    assert (status, body) == (200, b"")


def test_statistics_are_served_where_metrics_are(start: Start) -> None:
    """With an admin listener, what is counted is shown only there."""
    admin = free_port()
    router = start(WEB_CONCURRENCY=1, ADMIN_BIND=f"127.0.0.1:{admin}")
    assert requests.get(f"{router.url}/v2/models/stats", timeout=20).status_code == 404
    assert requests.get(f"http://127.0.0.1:{admin}/v2/models/stats", timeout=20).status_code == 200
