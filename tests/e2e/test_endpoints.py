"""The endpoints as clients see them, over the wire."""

import json
import re
import socket
from collections.abc import Callable

import pytest
import requests

from tests.support.clients import read_all
from tests.support.malformed import MALFORMED
from tests.support.ports import free_port
from tests.support.router import Router

pytestmark = pytest.mark.slow

Start = Callable[..., Router]


@pytest.fixture
def router(share: Start) -> Router:
    """A router with a name, a small limit for bodies, and a password to keep."""
    kv_endpoints = "a, redis://u:pw@b:6379/0 ,"
    return share(SIMULATED_LATENCY_MS=20, MAX_BODY_BYTES=1000, POD_NAME="pod-7", KV_ENDPOINTS=kv_endpoints)


def exchange(router: Router, data: bytes) -> bytes:
    """Raw bytes there and back, until the server closes."""
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as sock:
        sock.sendall(data)
        return read_all(sock)


def test_infer_answers_what_was_promised(router: Router) -> None:
    """All members, in their types; the time is measured; passwords are masked."""
    answer = router.infer("hello", members={"temperature": 0.5})
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["modelRef", "prompt", "routerPod", "kvEndpoints", "processingMs"]
    assert body["modelRef"] == "simulated"
    assert body["prompt"] == "hello"
    assert body["routerPod"] == "pod-7"
    assert body["kvEndpoints"] == ["a", "redis://u:***@b:6379/0"]
    assert isinstance(body["processingMs"], int)
    assert 20 <= body["processingMs"] < 10_000  # no microseconds
    assert "pw" not in router.log()


def test_router_pod_is_left_out_without_a_name(share: Start) -> None:
    """Neither POD_NAME nor HOSTNAME: no routerPod. And kvEndpoints is [], not [""]."""
    body = share(SIMULATED_LATENCY_MS=0).infer().json()
    assert "routerPod" not in body
    assert body["kvEndpoints"] == []


def test_plain_curl_works(router: Router) -> None:
    """`curl -d` declares a form; the body is read as JSON all the same."""
    answer = requests.post(
        f"{router.url}/infer",
        data='{"prompt":"x"}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        timeout=20,
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/infer", "/nothing"])
def test_every_answer_carries_request_id_and_timing(router: Router, path: str) -> None:
    """The caller's id if it is well formed, else a new one; and queue, model and total."""
    ask = requests.post if path == "/infer" else requests.get
    given = ask(router.url + path, headers={"X-Request-Id": "abc-1"}, data=b'{"prompt":""}', timeout=20)
    assert given.headers["X-Request-Id"] == "abc-1"
    made = ask(router.url + path, headers={"X-Request-Id": "not well formed"}, data=b'{"prompt":""}', timeout=20)
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])
    number = r"\d+\.\d{3}"
    timing = f"queue;dur={number}, model;dur={number}, total;dur={number}"
    assert re.fullmatch(timing, made.headers["Server-Timing"])


def test_too_large_a_body_is_refused_without_reading_it(router: Router) -> None:
    """Declared too long: 413 at once, before the body is sent; the connection closes."""
    answer = exchange(router, b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_too_large"


def test_too_large_a_body_is_refused_although_it_is_being_sent(router: Router) -> None:
    """The client gets to read the 413 though it goes on sending."""
    body = b"x" * 300_000
    answer = exchange(router, b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"}")


def test_too_large_a_chunked_body_is_refused(router: Router) -> None:
    """Chunked, over the limit: 413 as soon as the limit is passed, though no end is in sight."""
    chunk = b"200\r\n" + b"x" * 0x200 + b"\r\n"
    answer = exchange(router, b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_chunked_body_within_the_limit_is_served_and_the_connection_kept(router: Router) -> None:
    """Chunked is as good as Content-Length."""
    request = b'POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{"prompt":"x"}\r\n0\r\n\r\n'
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = exchange(router, request + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_malformed_chunks_are_bad_input(router: Router) -> None:
    """400, not 500."""
    answer = exchange(router, b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_request" in answer


def test_continue_is_sent_only_for_a_body_that_will_be_read(router: Router) -> None:
    """Expect: 100-continue: 100 before a body that is wanted, none before a 413."""
    wanted = exchange(
        router,
        b"POST /infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n"
        b'{"prompt":"x"}',
    )
    assert wanted.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    refused = exchange(
        router, b"POST /infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
    )
    assert refused.startswith(b"HTTP/1.1 413 ")


def test_pipelined_requests_are_answered_in_order(router: Router) -> None:
    """Three requests in one packet, three answers."""
    one = b'POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"prompt":"%d"}'
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = exchange(router, one % 1 + one % 2 + last)
    assert re.findall(rb'"prompt":"\d"|alive"', answer) == [b'"prompt":"1"', b'"prompt":"2"', b'alive"']


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_a_problem_document_too(router: Router, name: str) -> None:
    """What the parser refuses is answered like every other error, id and timing included, and reaches the client."""
    sent, status = MALFORMED[name]
    head, _, body = exchange(router, sent).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    for field in (
        b"Content-Type: application/problem+json",
        b"X-Request-Id: ",
        b"Server-Timing: ",
        b"Connection: close",
    ):
        assert field in head
    assert (json.loads(body)["status"], json.loads(body)["code"]) == (status, "malformed_request")


def test_method_that_nobody_knows_is_not_allowed(router: Router) -> None:
    """405 with Allow, as for any other method that the path doesn't take."""
    answer = requests.request("FOO", f"{router.url}/infer", timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "FOO" in answer.json()["detail"]
    assert answer.headers["Allow"] == "POST, OPTIONS"


def test_metrics_move_to_the_admin_listener(start: Start) -> None:
    """With ADMIN_BIND: /metrics only there, probes on both."""
    admin = free_port()
    router = start(ADMIN_BIND=f"127.0.0.1:{admin}")
    admin_url = f"http://127.0.0.1:{admin}"
    assert requests.get(f"{admin_url}/metrics", timeout=20).status_code == 200
    hidden = requests.get(f"{router.url}/metrics", headers={"Host": f"x:{admin}"}, timeout=20)
    assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found")
    for url in (router.url, admin_url):
        for probe in ("/healthz", "/readyz"):
            assert requests.get(url + probe, timeout=20).status_code == 200
