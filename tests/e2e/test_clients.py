"""What clients send, against real workers: rejected bodies, hosts and paths, long heads, cookies, CORS, and the log."""

import http.client
import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.clients import CHAT, read_all, read_to_end, unread_bytes
from tests.support.malformed import MALFORMED
from tests.support.ports import free_port
from tests.support.router import Router, until
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Routed = Callable[..., tuple[Router, Upstream]]
MIB = 1 << 20
PAGE = "https://app.example"
BODY = b'{"model": "m", "messages": []}'
ORDINARY = b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b"


@pytest.fixture
def routed(share_routed: Routed) -> tuple[Router, Upstream]:
    """A router with one worker and its model server, for all tests that need nothing else."""
    return share_routed(WEB_CONCURRENCY=1, MAX_BODY_BYTES=MIB, ACCESS_LOG="all")


def connect(router: Router) -> socket.socket:
    """A client that has said nothing yet."""
    return socket.create_connection(("127.0.0.1", router.port), timeout=20)


def chat(fields: bytes = b"", path: str = CHAT, body: bytes = BODY) -> bytes:
    """A chat completion with these header fields, each with its line end."""
    return ORDINARY % (path.encode(), fields, len(body), body)


def asked(router: Router, request: bytes) -> tuple[int, Any]:
    """Status and document of the response to this, on a connection of its own."""
    with connect(router) as sock:
        return ask(sock, request)


def ask(sock: socket.socket, request: bytes) -> tuple[int, Any]:
    """The same for one more request on this connection."""
    sock.sendall(request)
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, json.loads(response.read() or b"null")


# Bodies that are rejected while they are sent.


def pieces(size: int) -> Iterator[bytes]:
    """A body in chunks."""
    for _ in range(size // 65536):
        yield b"10000\r\n" + b"x" * 65536 + b"\r\n"
    yield b"0\r\n\r\n"


TOO_LARGE = 24 * MIB


@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        ("POST /infer", "", 413),
        ("PUT /infer", "", 405),
        ("POST /nowhere", "", 404),
        ("POST /infer", "Content-Type: multipart/form-data\r\n", 415),
        ("POST /infer", "Connection: TE, close\r\nX: 1\r\nX: 2\r\n", 413),
        ("POST /infer", "Host: a b\r\n", 400),
    ],
)
@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_client_that_sends_before_it_reads_gets_the_rejection(
    routed: tuple[Router, Upstream], request_line: str, fields: str, status: int, framing: str
) -> None:
    """A body that is not wanted is discarded, as far as it was declared, and the response arrives (RFC 9112, 9.6)."""
    router, _ = routed
    length = f"Content-Length: {TOO_LARGE}" if framing == "declared" else "Transfer-Encoding: chunked"
    host = "" if "Host" in fields else "Host: h\r\n"
    with connect(router) as sock:
        sock.sendall(f"{request_line} HTTP/1.1\r\n{host}{fields}{length}\r\n\r\n".encode())
        body = (b"x" * 65536 for _ in range(TOO_LARGE // 65536)) if framing == "declared" else pieces(TOO_LARGE)
        for piece in body:
            sock.sendall(piece)
        assert read_all(sock).startswith(b"HTTP/1.1 %d " % status)


def test_urllib_gets_413(routed: tuple[Router, Upstream]) -> None:
    """Python's own client sends all of its body before it looks at the response."""
    router, _ = routed
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{router.url}/infer", data=b"x" * TOO_LARGE, timeout=20)
    assert raised.value.code == 413
    assert json.load(raised.value)["code"] == "body_too_large"
    raised.value.close()


def rejected(router: Router) -> socket.socket:
    """A client whose body was rejected and that goes on sending nothing of it."""
    sock = connect(router)
    sock.sendall(b"POST /infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nx" % TOO_LARGE)
    assert read_to_end(sock).startswith(b"HTTP/1.1 413 ")
    return sock


def test_lingering_client_holds_up_neither_others_nor_a_drain(start: Start) -> None:
    """A client that may still send its rejected body is no request in progress: others are served, and a drain ends."""
    router = start(WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=1, MAX_CONCURRENCY=1, GRACEFUL_TIMEOUT_S=60)
    clients = [rejected(router) for _ in range(20)]
    assert router.metrics()["router_inflight_requests"] == 0
    assert router.infer().status_code == 200
    router.signal(signal.SIGTERM)
    deadline = time.monotonic() + 15  # half of what a client may linger that goes on sending
    while not router.exited() and time.monotonic() < deadline:
        for client in clients:
            with suppress(OSError):
                client.sendall(b"x")
        time.sleep(0.1)
    assert router.wait_exit(1) == 0
    for client in clients:
        client.close()


# What a request may say.


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (b"", True),
        (b"TE: trailers\r\nConnection: TE\r\n", True),
        (b"TE: trailers\r\nConnection: TE, close\r\n", False),
        (b"Connection: keep-alive\r\nConnection: Close\r\n", False),
    ],
)
def test_close_in_a_list_closes(routed: tuple[Router, Upstream], fields: bytes, kept: bool) -> None:
    """After `close`, wherever it stands, no further request of the connection is served (RFC 9112 section 9.6)."""
    router, upstream = routed
    with connect(router) as sock:
        sock.sendall(chat(fields) + chat(b"Connection: close\r\n"))
        answers = read_all(sock)
    assert answers.count(b"HTTP/1.1 200 OK") == len(upstream.seen) == (2 if kept else 1)
    assert answers.count(b"Connection: close\r\n") == 1


@pytest.mark.parametrize("host", [b"", b"Host: a b\r\n", b"Host: h\r\nHost: h\r\n", b"Host: h/x\r\n", b"Host: u@h\r\n"])
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_one_valid_host_is_needed(routed: tuple[Router, Upstream], host: bytes, method: bytes) -> None:
    """A request of HTTP/1.1 without exactly one valid Host is a 400 (RFC 9112 section 3.2), on either path."""
    status, document = asked(routed[0], method + b" /healthz HTTP/1.1\r\n" + host + b"\r\n")
    assert (status, document["code"]) == (400, "malformed_request")


FRAGMENTS = ["/healthz#", "/healthz#x", "/#/healthz", "/healthz?a#b", "http://h/healthz#x"]
NO_AUTHORITY = [
    *("http://user:pw@h/healthz", "http://user@h/healthz", "http://@h/healthz", "http://a:b@c@h/healthz"),
    *("http://:80/healthz", "http:///healthz", "http://h:x/healthz", "http://h\\x/healthz"),
]


@pytest.mark.parametrize(("target", "says"), [*product(FRAGMENTS, ["fragment"]), *product(NO_AUTHORITY, ["authority"])])
def test_target_that_no_client_may_send_is_400(routed: tuple[Router, Upstream], target: str, says: str) -> None:
    """A fragment stays with the client, and an authority is a host and a port: a user in it is often a deception.

    See RFC 9112 section 3.2, and RFC 9110 sections 4.2.1 and 4.2.4. The password is shown nowhere.
    """
    status, document = asked(routed[0], f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert (status, document["code"]) == (400, "malformed_request")
    assert says in document["detail"]
    assert "pw" not in document["detail"]


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        *((f"1.{minor}", b"HTTP/1.1 200 OK\r\n") for minor in (1, 2, 9)),
        *((version, b"HTTP/1.1 505 HTTP Version Not Supported\r\n") for version in ("2.0", "2.1", "3.0", "9.9")),
        *((version, b"HTTP/1.1 400 Bad Request\r\n") for version in ("0.9", "1.10", "1", "10.0", "1.", "1.x")),
    ],
)
def test_version_of_a_request(routed: tuple[Router, Upstream], version: str, answer: bytes) -> None:
    """A higher minor version is served as HTTP/1.1, a higher major one is not supported (RFC 9110 section 2.5).

    What is served as HTTP/1.1 keeps its connection, as HTTP/1.1 does.
    """
    with connect(routed[0]) as sock:
        sock.sendall(f"GET /healthz HTTP/{version}\r\nHost: h\r\n\r\n".encode() * 2)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answers = read_all(sock)
    assert answers.startswith(answer)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == (3 if b"200" in answer else 0)


def test_gzip_transfer_coding_is_501(routed: tuple[Router, Upstream]) -> None:
    """A coding that is not implemented has the status for that, and its phrase."""
    router, upstream = routed
    with connect(router) as sock:
        sock.sendall(b"POST /infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 501 Not Implemented\r\n")
    assert json.loads(body)["title"] == "Not Implemented"
    assert upstream.seen == []


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n",
        b"X-Forwarded-Proto: https\r\nX-Forwarded-Protocol: http\r\nX-Forwarded-Ssl: off\r\n",
        b"X-Forwarded-Proto: https\r\n",
    ],
)
def test_scheme_headers_that_disagree_are_no_error(routed: tuple[Router, Upstream], fields: bytes) -> None:
    """Of a proxy's words for the scheme, X-Forwarded-Proto counts and goes on; none makes a request malformed."""
    router, upstream = routed
    assert asked(router, chat(fields))[0] == 200
    assert upstream.seen[-1].headers["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("twice", [b"", b"X: 1\r\nX: 2\r\n"])
def test_cookie_fields_reach_the_server_as_one_list(routes: Any, start: Start, serve: Any, twice: bytes) -> None:
    """Cookies in two fields are joined by `; `, for the session's endpoint and for the model server."""
    with_cookies = {"name": "m", "forward_credentials": True}
    upstream = serve()
    router = start(ROUTES_FILE=routes({**with_cookies, "endpoints": [upstream.url]}), WEB_CONCURRENCY=1)
    assert asked(router, chat(b"Cookie: theme=dark\r\n" + twice + b"Cookie: sid=s1\r\n"))[0] == 200
    assert upstream.seen[-1].headers["cookie"] == "theme=dark; sid=s1"


NOT_FOUND = [
    *(
        "//metrics",
        "///healthz",
        "/%2Fmetrics",
        "/./metrics",
        "/../metrics",
        "/%2e/metrics",
        "/x/../metrics",
        "/%2e%2e/v2",
    ),
    *("/metrics/", "/metrics//", "/metrics/.", "//v1/models", "/v1//models", "/v1%2Fmodels", "/v2%2fhealth%2flive"),
    *("/v2//health/live", "/v2/models/./ready", "/v2/models/../ready", "/v2/models//ready", "http://h//metrics"),
    *("/v1/models/../models", "//h/metrics", "/v1/models//m", "http://h/v2%2Fhealth/live"),
    *(
        "/%6detrics",
        "/%6Detrics",
        "/metric%73",
        "/%68ealthz",
        "/readyz%00",
        "/%76%31/models",
        "/v1/model%73",
        "/%76%32",
    ),
    *(
        "/v2/%68ealth/live",
        "/v2/model%73/m/ready",
        "/v2/models/m/%72eady",
        "/v2/models/m%2Fready",
        "/v2/models/m%2fready",
    ),
    *(
        "/v2/models/m/versions/%31/ready",
        "/v2/models/m/version%73/1/ready",
        "http://h/%6detrics?a=b",
        "http://h/%76%32",
    ),
    *("/%7Emetrics", "/%2Dmetrics", "/metrics%", "/%zzmetrics", "/%256detrics"),
]


@pytest.mark.parametrize("target", NOT_FOUND)
@pytest.mark.parametrize("fields", [b"", b"X: 1\r\nX: 2\r\n"], ids=["fast", "slow"])
def test_path_in_another_spelling_is_404(routed: tuple[Router, Upstream], target: str, fields: bytes) -> None:
    """What a proxy in front may take for another path leads nowhere, on either path through the server."""
    assert asked(routed[0], b"GET %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (target.encode(), fields))[0] == 404


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions", "/v1/%2e/chat/completions"])
def test_inference_in_another_spelling_is_404(routed: tuple[Router, Upstream], path: str) -> None:
    """The same for inference: no model server sees it."""
    router, upstream = routed
    assert asked(router, chat(path=path))[0] == 404
    assert upstream.seen == []


@pytest.mark.parametrize(
    "target",
    [
        *("/healthz", "/healthz?x=/../%2F%68", "http://h/healthz", "http://other:80/healthz?a=//b%2Fc@d"),
        *("http://[::1]:80/healthz", "HTTPS://h:/healthz", "http://%68/healthz"),
    ],
)
def test_path_in_its_own_spelling_is_served(routed: tuple[Router, Upstream], target: str) -> None:
    """The absolute form and a query change nothing, whatever the query holds."""
    with connect(routed[0]) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("path", ["/%76%31/chat/completions", "/v1/chat/completion%73", "/%69nfer"])
def test_inference_under_an_escape_is_404(routed: tuple[Router, Upstream], path: str) -> None:
    """No letter of a path for inference may be escaped (RFC 3986 section 6.2.2.2): no model server sees the request."""
    router, upstream = routed
    assert asked(router, chat(path=path))[0] == 404
    assert upstream.seen == []


def test_name_of_a_model_may_have_escapes(share: Start) -> None:
    """Libraries escape what they like in a name, and it is the same name, under both protocols."""
    router = share(MODEL_REF="a model:8b", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    for name in ("a%20model:8b", "a%20model%3A8b", "%61%20%6dodel%3a8b"):
        for path in (f"/v1/models/{name}", f"/v2/models/{name}/ready", f"/v2/models/{name}/versions/1/ready"):
            assert asked(router, b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())[0] == 200, path


def test_slashes_in_the_name_of_a_model_may_be_escaped(share: Start) -> None:
    """Clients of OpenAI's API escape the slash of `org/model`, and others do not."""
    router = share(MODEL_REF="org/model", WEB_CONCURRENCY=1)
    for name in ("org/model", "org%2Fmodel"):
        assert requests.get(f"{router.url}/v1/models/{name}", timeout=10).json()["id"] == "org/model"


@pytest.mark.parametrize("size", [8_000, 16_000, 60_000])
@pytest.mark.parametrize("twice", [b"", b"X: 1\r\nX: 2\r\n"], ids=["fast", "slow"])
def test_long_credentials_are_taken(routed: tuple[Router, Upstream], size: int, twice: bytes) -> None:
    """A JWT of many kilobytes is no error."""
    assert asked(routed[0], chat(twice + b"Authorization: Bearer " + b"a" * size + b"\r\n"))[0] == 200


def test_limits_of_a_head_are_settings(share: Start, routed: tuple[Router, Upstream]) -> None:
    """A head over its limit is a 431 that names the setting; the settings move the limits, both ways."""
    small = share(MAX_HEADER_BYTES=2048, MAX_HEADER_FIELDS=10, WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    long, many = b"X: " + b"a" * 3000 + b"\r\n", b"".join(b"X%d: y\r\n" % number for number in range(10))
    for fields, setting in ((long, "MAX_HEADER_BYTES"), (many, "MAX_HEADER_FIELDS")):
        request = b"GET /healthz HTTP/1.1\r\nHost: h\r\n%b\r\n" % fields
        status, document = asked(small, request)
        assert (status, document["code"]) == (431, "malformed_request")
        assert setting in document["detail"]
        assert asked(routed[0], request)[0] == 200


@pytest.mark.parametrize("after", [b"X: y\r\n", b"a"])
def test_head_without_an_end_is_cut_off_at_the_limit(routed: tuple[Router, Upstream], after: bytes) -> None:
    """However long a client goes on with its head, no more than MAX_HEADER_BYTES of it are kept."""
    with connect(routed[0]) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: " + after * (70_000 // len(after)))
        assert read_all(sock).startswith(b"HTTP/1.1 431 ")


def test_trailer_without_an_end_is_cut_off_at_the_limit(routed: tuple[Router, Upstream]) -> None:
    """The same of a trailer section."""
    with connect(routed[0]) as sock:
        sock.sendall(b"POST /infer HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b'e\r\n{"prompt":"x"}\r\n0\r\n' + b"X: y\r\n" * 12_000)
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"trailer section" in answer


# Who a client is.


def tcp_timers(port: int) -> list[tuple[int, float]]:
    """The kind of timer, and the seconds until it is due, of every connection to this port (proc(5), /proc/net/tcp)."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, _, timer, *_ = line.split()
            if state == "01" and int(local.rpartition(":")[2], 16) == port:
                kind, _, due = timer.partition(":")
                found.append((int(kind, 16), int(due, 16) / 100))
    return found


@pytest.fixture
def dual(start: Start) -> Router:
    """A router that listens as it does on `[::]`, but on loopback only: its IPv4 clients have mapped addresses."""
    port = free_port()
    return start(port=port, BIND=f"[::ffff:127.0.0.1]:{port}", ACCESS_LOG="all", WEB_CONCURRENCY=1)


def test_client_of_a_dual_stack_listener(dual: Router) -> None:
    """An IPv4 client has its IPv4 address in the log, and its connection is kept alive, before NATs drop it."""
    with connect(dual) as sock:
        assert ask(sock, b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n")[0] == 404
        assert ask(sock, b"GET /nowhere HTTP/1.1\r\nHost: h\r\nX: 1\r\nX: 2\r\n\r\n")[0] == 404

        def watched() -> bool:  # another timer, of a delayed acknowledgement, may come first
            return any(kind == 2 and 1 < due < 350 for kind, due in tcp_timers(dual.port))

        until(watched, "TCP keep-alive is on")
        assert ask(sock, b"GET /nowhere HTTP/1.1\r\n\r\n")[0] == 400
    until(lambda: len(of_clients(dual)) == 3, "all are logged")
    assert {event["client"] for event in of_clients(dual)} == {"127.0.0.1"}


def of_clients(router: Router) -> list[dict[str, Any]]:
    """The lines of the log about requests, those of the start left out."""
    return [event for event in router.events() if "client" in event and event.get("path") != "/readyz"]


def test_address_of_a_dual_stack_client_is_passed_on_by_ipv4(start: Start, serve: Any) -> None:
    """X-Forwarded-For names the client as the model server would see it."""
    port, upstream = free_port(), serve()
    router = start(
        port=port, BIND=f"[::ffff:127.0.0.1]:{port}", BACKENDS=upstream.url, MODEL_REF="m", WEB_CONCURRENCY=1
    )
    assert asked(router, chat())[0] == 200
    assert upstream.seen[-1].headers["x-forwarded-for"] == "127.0.0.1"
    assert "traceparent" not in upstream.seen[-1].headers


# What the log says.


def test_log_of_malformed_requests_follows_access_log(share: Start) -> None:
    """ACCESS_LOG=off: no request is logged, the malformed ones included. Otherwise each has one line."""
    silent = share(ACCESS_LOG="off", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    talking = share(ACCESS_LOG="errors", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    before = len(silent.events()), len(of_clients(talking))
    for name, (data, status) in MALFORMED.items():
        for router in (silent, talking):
            with connect(router) as sock:
                sock.sendall(data)
                assert read_all(sock).startswith(b"HTTP/1.1 %d " % status), name
    until(lambda: len(of_clients(talking)) >= before[1] + len(MALFORMED), "all are logged")
    lines = of_clients(talking)[before[1] :]
    assert [(event["event"], event["status"]) for event in lines] == [
        ("malformed request", status) for _, status in MALFORMED.values()
    ]
    assert silent.events()[before[0] :] == []


def test_console_shows_no_control_characters(start: Start) -> None:
    """What a client sends can't move the cursor, ring, or write a line of its own where somebody reads the log."""
    router = start(LOG_FORMAT="console", ACCESS_LOG="all", WEB_CONCURRENCY=1, SIMULATED_LATENCY_MS=0)
    odd = "%1b[31m%07%0d%0aforged%9b2J%c2%9b%e2%80%ae%7f"
    for fields in (b"", b"X: 1\r\nX: 2\r\n"):
        assert asked(router, b"GET /odd%b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (odd.encode(), fields))[0] == 404
    for line in (b"GET /\x1b]0;odd\x07 HTTP/1.1", b"G\x1b[31mT /odd HTTP/1.1", b"GET /odd HTTP/1.1\r\nHost: \x9b2J"):
        assert asked(router, line + b"\r\n\r\n")[0] == 400
    until(lambda: router.log().count("/odd") == 2 and router.log().count("malformed request") == 3, "all are logged")
    text = router.log_path.read_bytes().decode()
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text) == []
    assert [line for line in text.splitlines() if line.startswith("forged")] == []
    assert r"\u001b[31m\u0007" in text


# Pages in a browser.


def answer_with_own_cors(seen: Seen, reply: Reply) -> None:
    """A model server that allows everybody, as vLLM does; it streams if it is asked to."""
    if b'"stream"' in seen.body:
        reply.begin(Access_Control_Allow_Origin="*", Access_Control_Allow_Credentials="true")
        reply.chunk(b"data: [DONE]\n\n")
        reply.chunk()
    else:
        reply.send(Access_Control_Allow_Origin="*", Access_Control_Allow_Credentials="true")


def allowed(response: requests.Response) -> dict[str, str]:
    """What a response says to browsers."""
    fields = {name.title(): value for name, value in response.headers.items()}
    return {name: value for name, value in fields.items() if name.startswith("Access-Control-")}


@pytest.mark.parametrize(("origins", "says"), [(PAGE, PAGE), ("*", "*")])
def test_every_response_says_so_to_pages_of_the_origin(share_routed: Routed, origins: str, says: str) -> None:
    """With CORS_ORIGINS, a page may read every response: those of model servers, streams, and all errors."""
    router, _ = share_routed(answer_with_own_cors, CORS_ORIGINS=origins, WEB_CONCURRENCY=1, MAX_BODY_BYTES=100)
    page = {"Origin": PAGE}
    long = {"Origin": PAGE, "X": "a" * 70_000}
    for method, path, body, headers, status in (
        ("POST", CHAT, BODY, page, 200),
        ("POST", CHAT, b'{"model":"m","messages":[],"stream":true}', page, 200),
        ("GET", "/nowhere", b"", page, 404),
        ("POST", CHAT, b"x" * 200, page, 413),
        ("PUT", CHAT, b"", page, 405),
        ("POST", CHAT, b"{", page, 400),
        ("GET", "/healthz", b"", long, 431),
    ):
        response = requests.request(method, router.url + path, data=body, headers=headers, timeout=10)
        assert response.status_code == status
        found = allowed(response)
        exposed = found.pop("Access-Control-Expose-Headers")
        assert {"X-Request-Id", "Retry-After"} <= set(exposed.split(", "))
        assert found == {"Access-Control-Allow-Origin": says}, status
        assert ("Origin" in response.headers.get("Vary", "")) == (origins != "*")


_FROM_PAGE = b"GET /healthz HTTP/1.1\r\nHost: h\r\nOrigin: " + PAGE.encode() + b"\r\n"
_CHUNKED = _FROM_PAGE.replace(b"GET /healthz", b"POST /infer") + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((_FROM_PAGE, b"X Y: 1\r\n\r\n"), 400),
        ((_FROM_PAGE[:-10], _FROM_PAGE[-10:], b"X: \x00\r\n\r\n"), 400),
        ((_FROM_PAGE[:40], _FROM_PAGE[40:] + b"X Y: 1\r\n\r\n"), 400),
        ((_FROM_PAGE, b"X: 1\nY: 1\r\n\r\n"), 400),
        ((_FROM_PAGE, b"Host: h\r\n", b"\r\n"), 400),
        ((_FROM_PAGE, b"Expect: wonders\r\n\r\n"), 417),
        ((_FROM_PAGE, b"X: ", b"a" * 70_000), 431),
        ((_CHUNKED.replace(b"chunked", b"gzip, chunked"), b"\r\n"), 501),
        ((_CHUNKED, b"\r\n", b"nonsense\r\n"), 400),
        ((_CHUNKED[:20], _CHUNKED[20:] + b"\r\n", b"nonsense\r\n"), 400),
        ((_CHUNKED + b"\r\n2\r\n{}\r\n", b"0\r\nX Y: 1\r\n\r\n"), 400),
        ((_FROM_PAGE.replace(PAGE.encode(), b"https://x") + b"\r\n", _FROM_PAGE, b"X Y: 1\r\n\r\n"), 400),
    ],
    ids=range(12),
)
def test_page_may_read_the_error_whatever_the_pieces(
    share_routed: Routed, pieces: tuple[bytes, ...], status: int
) -> None:
    """The Origin counts wherever it came, in a piece before the fault too, and it is that of the malformed request."""
    router, _ = share_routed(answer_with_own_cors, CORS_ORIGINS=PAGE, WEB_CONCURRENCY=1, MAX_BODY_BYTES=100)
    with connect(router) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            sock.sendall(piece)
            until(lambda: not unread_bytes(sock), "the router has read the piece")
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    head = answer[answer.index(b"HTTP/1.1 %d " % status) :]
    assert b"\r\nAccess-Control-Allow-Origin: %b\r\n" % PAGE.encode() in head


def test_page_may_read_that_the_application_failed(start: Start) -> None:
    """The 500 of an application that raises is the server's own, and has the fields too, whatever the pieces."""
    router = start(app="tests.support.echo_wsgi:application", CORS_ORIGINS=PAGE, WEB_CONCURRENCY=1)
    for more, cuts in product((b"", b"X: 1\r\nX: 2\r\n"), ((), (20,), (len(_FROM_PAGE) - 10,))):
        head = _FROM_PAGE.replace(b"/healthz", b"/fails") + more + b"\r\n"
        with connect(router) as sock:
            for begin, end in pairwise((0, *cuts, len(head))):
                sock.sendall(head[begin:end])
                until(lambda: not unread_bytes(sock), "the router has read the piece")
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"\r\nAccess-Control-Allow-Origin: %b\r\n" % PAGE.encode() in answer


def test_preflight_allows_what_the_path_takes(share_routed: Routed) -> None:
    """A browser asks before it sends a credential or JSON: methods of the path, and the fields by their names."""
    router, upstream = share_routed(answer_with_own_cors, CORS_ORIGINS=PAGE, WEB_CONCURRENCY=1, MAX_BODY_BYTES=100)
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    response = requests.options(router.url + CHAT, headers={"Origin": PAGE, **wants}, timeout=10)
    assert response.ok
    found = allowed(response)
    assert found["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in found["Access-Control-Allow-Methods"].split(", ")
    assert found["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert int(found["Access-Control-Max-Age"]) > 0
    assert upstream.seen == []
    missing = requests.options(f"{router.url}/nowhere", headers={"Origin": PAGE, **wants}, timeout=10)
    assert missing.status_code == 404


def test_page_of_another_origin_is_allowed_nothing(share_routed: Routed) -> None:
    """Neither by the router, nor by a model server behind it."""
    router, _ = share_routed(answer_with_own_cors, CORS_ORIGINS=PAGE, WEB_CONCURRENCY=1, MAX_BODY_BYTES=100)
    for origin in ("https://evil.example", "https://app.example.evil.example", "null", PAGE.upper(), None):
        headers = {"Access-Control-Request-Method": "POST", **({"Origin": origin} if origin else {})}
        for response in (
            requests.post(router.url + CHAT, data=BODY, headers=headers, timeout=10),
            requests.options(router.url + CHAT, headers=headers, timeout=10),
        ):
            assert response.ok
            assert allowed(response) == {}
            assert response.headers["Vary"] == "Origin"


def test_without_cors_origins_nothing_is_said(routed: tuple[Router, Upstream]) -> None:
    """CORS is an opt-in. A model server's own fields pass on, as they are its own business then."""
    router, upstream = routed
    upstream.reset(answer_with_own_cors)
    wants = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert allowed(requests.options(router.url + CHAT, headers=wants, timeout=10)) == {}
    assert allowed(requests.get(f"{router.url}/nowhere", headers=wants, timeout=10)) == {}
    passed = allowed(requests.post(router.url + CHAT, data=BODY, headers=wants, timeout=10))
    assert passed["Access-Control-Allow-Origin"] == "*"
