"""Who gets in, at real gunicorn workers: before anything else is done, in every worker, and from one moment."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat, read_to_end
from tests.support.credentials import AUDIENCE, ISSUER, Issuer, KeySetServer, bearer, digest_of, key, write_keys
from tests.support.gate import Gate
from tests.support.router import Router, until
from tests.support.start import run_to_exit
from tests.support.upstream import Hold, Upstream, send_empty

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Serve = Callable[..., Upstream]
Routes = Callable[..., str]

ONE, TWO = "ir-secret-number-one", "ir-secret-number-two"


def ask(router: Router, method: str, path: str, **headers: str) -> requests.Response:
    """One request with these headers, on a connection of its own."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} if method == "POST" else None
    return requests.request(method, f"{router.url}{path}", json=body, headers=headers, timeout=20)


@pytest.fixture
def two_models(start: Start, serve: Serve, routes: Routes, tmp_path: Path) -> tuple[Router, Upstream]:
    """A router of the models m and n, with an alias each; the key ONE is for all of them, and TWO for m."""
    upstream = serve()
    models = [
        {"name": name, "aliases": [f"{name}-alias"], "endpoints": [upstream.url], "fallback": fallback}
        for name, fallback in (("m", ["n"]), ("n", []))
    ]
    file = write_keys(tmp_path / "keys.json", key(ONE), key(TWO, "u", models=["m-alias"]))
    return start(ROUTES_FILE=routes(*models), KEYS_FILE=file), upstream


@pytest.fixture(scope="module")
def shared_keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router of a simulated model, and of the key ONE."""
    folder = tmp_path_factory.mktemp("keyed")
    with Router(folder, KEYS_FILE=write_keys(folder / "keys.json", key(ONE)), WEB_CONCURRENCY=1) as router:
        yield router


def test_everything_but_probes_needs_a_key(two_models: tuple[Router, Upstream]) -> None:
    """401 with a challenge in the form of the path; nothing reaches a model server, and no permit is taken."""
    router, upstream = two_models
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert ask(router, "GET", path).status_code == 200, path
    paths = [("POST", path) for path in ("/infer", CHAT, "/v1/messages", "/v1/responses", "/v2/models/m/infer")]
    paths += [("GET", path) for path in ("/v1/models", "/v1/models/m", "/v2", "/v2/models/m/ready", "/nowhere", "/")]
    paths += [("POST", "/v2/repository/index"), ("PATCH", CHAT), ("OPTIONS", CHAT), ("GET", "//healthz")]
    for method, path in paths:
        if path == "/":
            continue  # of operators
        answer = ask(router, method, path)
        assert (answer.status_code, path) == (401, path)
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="inference-router"'
        wrong = ask(router, method, path, **bearer("ir-unknown"))
        assert wrong.headers["WWW-Authenticate"].endswith(
            'error="invalid_token", error_description="the key is not known"'
        )
    assert ask(router, "POST", CHAT).json()["error"]["code"] == "unauthorized"
    assert ask(router, "POST", "/v1/messages").json()["error"]["type"] == "authentication_error"
    assert ask(router, "POST", "/infer").json()["code"] == "unauthorized"
    metrics = router.metrics()
    assert not upstream.seen
    assert metrics['router_unauthorized_requests_total{reason="missing"}'] == len(paths) - 1 + 3
    assert metrics["router_queue_wait_seconds_count"] == 0
    assert ask(router, "POST", CHAT, **bearer(ONE)).status_code == 200
    assert ask(router, "POST", CHAT, **{"x-api-key": ONE}).status_code == 200
    assert ask(router, "POST", CHAT, **{"x-api-key": ONE, **bearer(TWO)}).status_code == 200
    assert ask(router, "POST", CHAT, **{"x-api-key": ONE, **bearer("wrong")}).status_code == 401
    names = {name.lower() for request in upstream.seen for name in request.headers}
    assert not names & {"authorization", "x-api-key"}, "the client's key reached a model server"


def test_body_of_a_request_without_a_key_is_not_read(two_models: tuple[Router, Upstream]) -> None:
    """The response comes before the body, and nobody is asked to send it (Expect: 100-continue)."""
    router, _ = two_models
    for more in ("", "Expect: 100-continue\r\n"):
        with socket.create_connection(("127.0.0.1", router.port), timeout=20) as sock:
            sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: 1000000\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 401 Unauthorized\r\n")


BODY = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
"""The body of a request that, if it were read as one, would get 200."""


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"Content-Length: %d" % len(BODY), BODY),
        (b"Content-Length: %d" % (len(BODY) + 1), BODY),
        (b"Transfer-Encoding: chunked", b""),
        (b"Transfer-Encoding: chunked", b"%x\r\n%s" % (len(BODY), BODY)),
        (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
        (b"Transfer-Encoding: chunked", b"no size\r\n" + BODY),
    ],
)
def test_body_without_a_key_is_never_taken_for_a_request(
    shared_keyed: Router, framing: bytes, sent: bytes, expect: bytes
) -> None:
    """However it is framed, and whatever is in it: one 401, no 100, and the connection ends."""
    with socket.create_connection(("127.0.0.1", shared_keyed.port), timeout=20) as sock:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%s%s\r\n\r\n" % (CHAT.encode(), expect, framing)
        sock.sendall(head + sent)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401"]


LINE, FIELDS, KEY = b"GET /v1/models HTTP/1.1", b"Host: x\r\nConnection: close\r\n", b"ir-SECRET"


@pytest.mark.parametrize(
    "head",
    [
        LINE + b"\r\n" + FIELDS + b"Authorization Bearer " + KEY,
        LINE + b"\r\n" + FIELDS + b"Authorization: Bearer " + KEY + b"\1",
        LINE + b"\r\n" + FIELDS + b"Authorization : " + KEY,
        LINE + b"\r\n" + FIELDS + b"Authorization: Bearer\r\n " + KEY,
        LINE + b"\r\n" + FIELDS + b"Bearer " + KEY + b": x",
        LINE + b"\r\n" + FIELDS + KEY,
        LINE + b"\r\n" + FIELDS + KEY + b":\r\n x",
        LINE + b"\r\n" + FIELDS + b"Content-Length: " + KEY,
        LINE + b"\r\n" + FIELDS + b"Transfer-Encoding: " + KEY,
        LINE + b"\r\n" + FIELDS + b"Expect: " + KEY,
        LINE + b"\r\nHost: u:" + KEY + b"@x",
        KEY + b"/ /v1/models HTTP/1.1\r\n" + FIELDS,
        LINE.replace(b"models", b"models?key=" + KEY + b"\1") + b"\r\n" + FIELDS,
        LINE.replace(b"models", b"models?key=" + KEY + b"#x") + b"\r\n" + FIELDS,
        LINE.replace(b"/v1", b"http://u:" + KEY + b"@x/v1") + b"\r\n" + FIELDS,
        LINE.replace(b"HTTP/1.1", KEY) + b"\r\n" + FIELDS,
    ],
)
def test_key_in_a_malformed_head_is_shown_to_nobody(shared_keyed: Router, head: bytes) -> None:
    """Wherever a client puts it by mistake, neither the log nor the response repeats it."""
    before = shared_keyed.log()
    with socket.create_connection(("127.0.0.1", shared_keyed.port), timeout=20) as sock:
        sock.sendall(head + b"\r\n\r\n")
        response = read_to_end(sock)
    assert response.split(b" ", 2)[1] in {b"400", b"417", b"501"}
    until(lambda: "malformed request" in shared_keyed.log().removeprefix(before), "it is logged")
    assert b"SECRET" not in response
    assert "SECRET" not in shared_keyed.log().removeprefix(before)


def test_key_is_that_of_its_request_only(shared_keyed: Router) -> None:
    """On one connection, and in one packet: a request is not let in by the key of the one before it."""
    request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n%s\r\n"
    credential = f"Authorization: Bearer {ONE}\r\n".encode()
    last = b"Connection: close\r\n"
    with socket.create_connection(("127.0.0.1", shared_keyed.port), timeout=20) as sock:
        sock.sendall(b"".join(request % fields for fields in (b"", credential, b"", credential, last)))
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401", b"200", b"401", b"200", b"401"]


def test_key_is_for_its_models_only(two_models: tuple[Router, Upstream]) -> None:
    """403 for another model, which is in no list and no error; a fallback that is not allowed does not serve."""
    router, upstream = two_models

    def send(model: str) -> requests.Response:
        return requests.post(f"{router.url}{CHAT}", json={"model": model}, headers=bearer(TWO), timeout=20)

    assert [send(model).status_code for model in ("m", "m-alias", "n", "n-alias", "x")] == [200, 200, 403, 403, 404]
    assert send("n").json()["error"]["code"] == "model_not_allowed"
    assert "n" not in re.findall(r"\w+", send("x").json()["error"]["message"].replace("no model", ""))
    for secret, names in ((ONE, ["m", "m-alias", "n", "n-alias"]), (TWO, ["m", "m-alias"])):
        listed = ask(router, "GET", "/v1/models", **bearer(secret)).json()["data"]
        assert [card["id"] for card in listed] == names
    assert ask(router, "GET", "/v1/models/n", **bearer(TWO)).status_code == 403
    seen = len(upstream.seen)
    upstream.reset(lambda _, reply: reply.send(500))
    assert send("m").status_code == 500
    assert len(upstream.seen) <= seen + 3
    assert not any(json.loads(request.body).get("model") == "n" for request in upstream.seen)


def test_changed_keys_hold_in_every_worker_from_one_moment(start: Start, tmp_path: Path) -> None:
    """Once they are published, the old key is refused and the new one accepted everywhere; a bad file changes nothing.

    No secret, and nothing of the file, is in the log.
    """
    file = tmp_path / "keys.json"
    router = start(KEYS_FILE=write_keys(file, key(ONE)), WEB_CONCURRENCY=3, SIMULATED_LATENCY_MS=0, ACCESS_LOG="all")
    assert {router.infer(headers=bearer(ONE)).status_code for _ in range(9)} == {200}
    write_keys(file, key(TWO, expires="2999-01-01T00:00:00Z"))
    until(lambda: "keys published" in router.log(), "they are published")
    assert {router.infer(headers=bearer(ONE)).status_code for _ in range(15)} == {401}
    assert {router.infer(headers=bearer(TWO)).status_code for _ in range(15)} == {200}
    write_keys(file, key(TWO), {**key(ONE), "sha256": ONE})
    until(lambda: "keys refused" in router.log(), "it is refused")
    router.signal(signal.SIGHUP)
    (event, *_) = [event for event in router.events() if event["event"].startswith("keys refused")]
    assert f"{file}:1: keys[1].sha256 must be the SHA-256 of the key" in event["reason"]
    assert {router.infer(headers=bearer(TWO)).status_code for _ in range(9)} == {200}
    metrics = router.metrics()
    assert metrics['router_keys_reloads_total{result="ok"}'] == 1
    assert metrics['router_keys_reloads_total{result="refused"}'] >= 1
    write_keys(file, key(TWO, expires="2020-01-01T00:00:00Z"))
    until(lambda: router.infer(headers=bearer(TWO)).status_code == 401, "an expired key is refused")
    assert "expired" in router.infer(headers=bearer(TWO)).headers["WWW-Authenticate"]
    assert any(event.get("credential") == f"id-{TWO[-6:]}" for event in router.events())
    log = router.log() + requests.get(f"{router.url}/metrics", timeout=20).text
    assert not any(secret in log for secret in (ONE, TWO, digest_of(ONE), digest_of(TWO)))


def test_tenant_has_its_limit_over_all_workers(start_gated: Start, gate: Gate, tmp_path: Path) -> None:
    """Of 20 requests by two keys of a tenant, 3 are inside, whichever workers serve them; others are not touched.

    The places come back with the responses, with a client that leaves, and with a worker that is killed.
    """
    tenants: tuple[dict[str, object], ...] = ({"name": "t", "max_concurrency": 3}, {"name": "u"})
    file = write_keys(tmp_path / "keys.json", key(ONE), key("ir-a"), key(TWO, "u"), tenants=tenants)
    router = start_gated(KEYS_FILE=file, MAX_CONCURRENCY=8, WEB_CONCURRENCY=3, QUEUE_SIZE=5)
    crowd = Crowd(lambda n: router.infer(headers=bearer((ONE, "ir-a")[n % 2])).status_code).send(20)
    until(lambda: len(crowd.answers) == 17, "17 were rejected")
    gate.wait_inside(3)  # who has a place may still be on the way
    assert gate.peak == 3
    others = Crowd(lambda _: router.infer(headers=bearer(TWO)).status_code).send(5)
    gate.wait_inside(8)
    rejected = router.infer(headers=bearer(ONE))
    assert (rejected.status_code, rejected.json()["code"]) == (429, "tenant_limit_reached")
    assert 1 <= int(rejected.headers["Retry-After"]) <= 60
    limit = {name: rejected.json()[name] for name in ("limit_scope", "limit", "in_flight", "ahead")}
    assert limit == {"limit_scope": "tenant", "limit": 3, "in_flight": 3, "ahead": 0}
    metrics = router.metrics()
    assert metrics['router_tenant_inflight{tenant="t"}'] == 3
    assert metrics['router_tenant_inflight{tenant="u"}'] == 5
    counted = 'router_tenant_rejected_total{reason="tenant_limit_reached",tenant="t"}'
    until(lambda: router.metrics()[counted] == 18, "every rejection is counted")  # each after its response
    assert router.metrics()['router_rejected_requests_total{reason="tenant_limit_reached"}'] == 18
    for worker in router.workers():
        router.signal(signal.SIGKILL, worker)
    crowd.join()
    others.join()
    until(lambda: len(router.workers()) == 3 and router.ready(), "new workers are there")
    until(lambda: router.metrics()['router_tenant_inflight{tenant="t"}'] == 0, "the places came back")
    again = Crowd(lambda _: router.infer(headers=bearer(ONE)).status_code).send(3)
    gate.wait_inside(3)
    gate.open()
    assert again.join().counts() == {200: 3}


def test_place_of_the_tenant_comes_back_when_a_later_limit_rejects(
    start: Start, serve: Serve, routes: Routes, tmp_path: Path
) -> None:
    """Tenant, model, cap: a request that the model's limit or the queue rejects leaves no count behind."""
    hold = Hold()
    model = {"name": "m", "endpoints": [serve(hold).url], "max_concurrency": 1}
    tenants: tuple[dict[str, object], ...] = ({"name": "t", "max_concurrency": 4},)
    file = write_keys(tmp_path / "keys.json", key(ONE), tenants=tenants)
    router = start(KEYS_FILE=file, ROUTES_FILE=routes(model, {**model, "name": "n"}), MAX_CONCURRENCY=1)

    def code(name: str) -> str:
        answer = requests.post(
            f"{router.url}{CHAT}",
            json={"model": name, "messages": [{"role": "user", "content": "x"}]},
            headers=bearer(ONE),
            timeout=20,
        )
        return "ok" if answer.ok else str(answer.json()["error"]["code"])

    crowd = Crowd(lambda _: code("m")).send(1)
    until(lambda: router.metrics()["router_inflight_requests"] == 1, "one is inside")
    for _ in range(3):
        assert [code("m"), code("n")] == ["model_limit_reached", "limit_reached"]
        # A rejected request is released after its last byte was sent.
        until(lambda: router.metrics()['router_tenant_inflight{tenant="t"}'] == 1, "only the one that is inside counts")
    hold.release()
    assert crowd.join().answers == {0: "ok"}
    until(lambda: router.metrics()['router_tenant_inflight{tenant="t"}'] == 0, "none is counted")


def test_header_counts_from_trusted_gateways_only(start: Start, serve: Serve, tmp_path: Path) -> None:
    """A header of anybody else says nothing, and reaches no model server; one that is there twice is refused."""
    upstream = serve()
    common = {"BACKENDS": upstream.url, "MODEL_REF": "m", "TENANT_HEADER": "X-Tenant"}
    trusting = start(**common, TRUSTED_PROXIES="10.0.0.0/8, 127.0.0.1")
    assert chat(trusting).status_code == 401
    assert ask(trusting, "POST", CHAT, **{"X-Tenant": "t"}).status_code == 200
    assert ask(trusting, "POST", CHAT, **{"X-Tenant": "t, admin"}).status_code == 401
    assert ask(trusting, "POST", CHAT, **{"X-Tenant": ""}).status_code == 401
    assert ask(trusting, "POST", CHAT, X_Tenant="t").status_code != 200
    file = write_keys(tmp_path / "keys.json", key(ONE))
    wary = start(**common, TRUSTED_PROXIES="10.0.0.0/8", KEYS_FILE=file)
    assert ask(wary, "POST", CHAT, **{"X-Tenant": "t"}).status_code == 401
    upstream.reset(send_empty)
    assert ask(wary, "POST", CHAT, **{"X-Tenant": "t", **bearer(ONE)}).status_code == 200
    assert "x-tenant" not in {name.lower() for request in upstream.seen for name in request.headers}


def test_tokens_by_keys_that_are_fetched(start: Start, tmp_path: Path) -> None:
    """Keys are fetched once for all workers, rarely again for unknown ids, and used on while the issuer is down."""
    issuer = Issuer()
    with KeySetServer(issuer) as server:
        router = start(
            JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_JWKS=server.url, WEB_CONCURRENCY=3, SIMULATED_LATENCY_MS=0
        )
        token = issuer.token()
        until(lambda: router.infer(headers=bearer(token)).status_code == 200, "the keys are there")
        assert {router.infer(headers=bearer(token)).status_code for _ in range(15)} == {200}
        assert server.asked == 1
        forged = issuer.token(headers={"kid": "invented"})
        began = time.monotonic()
        assert {router.infer(headers=bearer(forged)).status_code for _ in range(30)} == {401}
        assert server.asked <= 2 + (time.monotonic() - began) // 10, "every unknown id led to a fetch"
        server.down = True
        assert {router.infer(headers=bearer(token)).status_code for _ in range(9)} == {200}
        expired = router.infer(headers=bearer(issuer.token(exp=1)))
        assert (expired.status_code, "expired" in expired.headers["WWW-Authenticate"]) == (401, True)
        assert token not in router.log()


def test_tokens_by_a_file_that_changes(start: Start, tmp_path: Path) -> None:
    """A key that the file has no more verifies nothing, in every worker; a bad file changes nothing."""
    issuer, later, file = Issuer(), Issuer(), tmp_path / "jwks.json"
    router = start(
        JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_JWKS=issuer.write(file), WEB_CONCURRENCY=3, SIMULATED_LATENCY_MS=0
    )
    assert {router.infer(headers=bearer(issuer.token())).status_code for _ in range(9)} == {200}
    file.write_text("{")
    until(lambda: "key set refused" in router.log(), "it is refused")
    assert {router.infer(headers=bearer(issuer.token())).status_code for _ in range(9)} == {200}
    later.write(file)
    until(lambda: "key set published" in router.log(), "it is published")
    assert {router.infer(headers=bearer(issuer.token())).status_code for _ in range(9)} == {401}
    assert {router.infer(headers=bearer(later.token())).status_code for _ in range(9)} == {200}


def test_operators_pages_have_their_own_key(start: Start, tmp_path: Path) -> None:
    """A client's key does not open them, nor theirs a model; a browser and Prometheus may send it as a password."""
    admin = "ir-of-the-operator"
    digests = f"{digest_of('ir-older')},{digest_of(admin)}"
    file = write_keys(tmp_path / "keys.json", key(ONE))
    router = start(KEYS_FILE=file, ADMIN_KEY_SHA256=digests, SIMULATED_LATENCY_MS=0)
    for path in ("/metrics", "/v2/models/stats"):
        refused = ask(router, "GET", path)
        assert refused.status_code == 401
        assert 'Basic realm="inference-router"' in refused.headers["WWW-Authenticate"]
        assert ask(router, "GET", path, **bearer(ONE)).status_code == 401
        assert ask(router, "GET", path, **bearer(admin)).status_code == 200
        assert ask(router, "GET", path, **{"x-api-key": "ir-older"}).status_code == 200
        assert requests.get(f"{router.url}{path}", auth=("x", admin), timeout=20).status_code == 200
        assert requests.get(f"{router.url}{path}", auth=("x", "wrong"), timeout=20).status_code == 401
    assert router.infer(headers=bearer(admin)).status_code == 401


def test_start_says_whether_it_is_off_and_refuses_what_is_wrong(start: Start, tmp_path: Path) -> None:
    """Off by default, with one warning; a wrong file ends the start with one line, and shows nothing of it."""
    router = start()
    assert router.log().count("authentication is off") == 1
    assert router.infer().status_code == 200
    file = Path(write_keys(tmp_path / "keys.json", {**key(ONE), "sha256": ONE}))
    wrong = run_to_exit({"KEYS_FILE": str(file)})
    assert wrong.returncode != 0
    assert f"router: {file}:1: keys[0].sha256 must be" in wrong.stderr
    assert ONE not in wrong.stderr
