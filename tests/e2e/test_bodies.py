"""Bodies that are meant to hurt: no body holds a worker up, takes a multiple of its memory, or is read in two ways."""

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.router import Router
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

MEGABYTES = 4 << 20
FLOAT = b"7e-320"
ONES = b'{"messages":[%b]}' % b",".join([b"1"] * (1 << 19))
OUTPUT = b'{"outputs":[],"choices":[{"message":{"content":"x"}}],'


def deep(levels: int) -> bytes:
    """The member `o`: so many arrays in one another."""
    return b'"o":' + b"[" * levels + b"]" * levels


def repeated(one: bytes, size: int = MEGABYTES) -> bytes:
    """Bytes of this size: one element, again and again."""
    return b",".join([one] * (size // (len(one) + 1)))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The model server of these tests, by both protocols. It responds with what the prompt names."""
    bodies = {
        b"floats": OUTPUT + b'"o":[%b]}' % repeated(FLOAT, 6 * MEGABYTES),
        b"deep": OUTPUT + deep(2000) + b"}",
        b"bytes": OUTPUT + b'"\xff":1}',
    }

    def respond(seen: Seen, reply: Reply) -> None:
        found = re.search(rb'"(?:content|data)":\[?"(\w+)"', seen.body)
        reply.send(body=bodies.get(found[1] if found else b"", OUTPUT + b'"o":1}'))

    with Upstream(respond) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Router]:
    """One worker, so that the others are held up by what holds it up."""
    folder = tmp_path_factory.mktemp("bodies")
    path = folder / "routes.json"
    models = [
        {"name": name, "protocol": protocol, "endpoints": [upstream.url], "health_check": {"interval_s": 0}}
        for name, protocol in (("m", "openai"), ("v", "v2"))
    ]
    models[0]["upstream_model"] = "other"  # so that the name is put in
    path.write_text(json.dumps({"models": models}))
    with Router(
        folder, ROUTES_FILE=path, WEB_CONCURRENCY=1, MAX_CONCURRENCY=32, MAX_BODY_BYTES=2 * MEGABYTES
    ) as router:
        yield router


def post(router: Router, path: str, body: bytes, headers: dict[str, str] | None = None) -> requests.Response:
    """POST these bytes, on a connection of its own."""
    return requests.post(router.url + path, body, headers=headers, timeout=60)


SLOW_TO_DECODE: dict[str, tuple[str, bytes, bytes]] = {
    "floats to infer": ("/infer", b'{"prompt":"x","o":[...]}', FLOAT),
    "floats to chat": ("/v1/chat/completions", b'{"messages":[...]}', FLOAT),
    "floats to v2": ("/v2/models/v/infer", b'{"inputs":[...]}', FLOAT),
    "a long response": ("/infer", b'{"prompt":"floats"}', b""),
    "names of the model": ("/v1/chat/completions", b'{"x":[...]}', b'{"model":1}'),
}
"""Path, body, and the element that stands in it, for the dots, again and again."""


@pytest.mark.alone
@pytest.mark.parametrize("name", SLOW_TO_DECODE)
def test_no_body_holds_its_worker_up(router: Router, name: str) -> None:
    """While ten such bodies are served, every probe is answered in a fraction of what decoding one would take."""
    path, around, one = SLOW_TO_DECODE[name]
    body = around.replace(b"...", repeated(one))
    workers = router.workers()
    longest = 0.0
    with ThreadPoolExecutor(10) as pool, requests.Session() as session:
        responses = [pool.submit(post, router, path, body) for _ in range(10)]
        while not all(response.done() for response in responses):
            began = time.monotonic()
            assert session.get(f"{router.url}/healthz", timeout=30).status_code == 200
            longest = max(longest, time.monotonic() - began)
        assert [response.result().status_code for response in responses] == [200] * 10
    assert longest < 2.0  # decoded, one of these bodies held its worker for 3 to 5 s
    assert router.workers() == workers


IN_PROPORTION: dict[str, tuple[str, bytes, bytes]] = {
    "inputs": ("/v2/models/v/infer", b'{"inputs":[...]}', b"1"),
    "messages": ("/v1/chat/completions", b'{"messages":[...]}', b"1"),
    "options": ("/infer", b'{"prompt":"x","o":[...]}', b"1"),
    "members": ("/infer", b'{"prompt":"x",...}', b'"":1'),
    "members of chat": ("/v1/chat/completions", b"{...}", b'"":1'),
}


@pytest.mark.parametrize("name", IN_PROPORTION)
def test_a_body_takes_some_three_times_its_size(router: Router, name: str) -> None:
    """The promise of docs/kubernetes.md, for whatever a body is made of."""
    path, around, one = IN_PROPORTION[name]
    body = around.replace(b"...", repeated(one))
    (worker,) = router.workers()
    assert post(router, path, b'{"prompt":"x","messages":[],"inputs":[]}').status_code == 200
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # the peak is counted from here
    before = _memory(worker, "VmHWM")
    assert post(router, path, body).status_code == 200
    assert _memory(worker, "VmHWM") - before < 3.5 * len(body)


def test_a_chunked_body_takes_some_three_times_its_size(router: Router) -> None:
    """Also if every chunk is of two bytes: their number does not matter."""
    (worker,) = router.workers()
    assert post(router, "/v1/chat/completions", b"{}").status_code == 200
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = _memory(worker, "VmHWM")
    assert _post_in_small_chunks(router, ONES) == b"HTTP/1.1 200"
    assert _memory(worker, "VmHWM") - before < 3.5 * len(ONES)


@pytest.mark.alone
def test_many_small_chunks_hold_no_worker_up(router: Router) -> None:
    """Reading them takes long, and meanwhile probes are answered all the time."""
    longest = 0.0
    with ThreadPoolExecutor(1) as pool, requests.Session() as session:
        began = time.monotonic()
        response = pool.submit(_post_in_small_chunks, router, ONES)
        while not response.done():
            probed = time.monotonic()
            assert session.get(f"{router.url}/healthz", timeout=30).status_code == 200
            longest = max(longest, time.monotonic() - probed)
        assert response.result() == b"HTTP/1.1 200"
    assert longest < (time.monotonic() - began) / 8


def _post_in_small_chunks(router: Router, body: bytes) -> bytes:
    """Returns the beginning of the response."""
    pieces = (body[at : at + 2] for at in range(0, len(body), 2))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port), 60) as client:
        client.sendall(head + chunks + b"0\r\n\r\n")
        return client.recv(12)


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


@pytest.mark.parametrize("levels", range(900, 1001, 4))
@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions"])
def test_what_is_accepted_can_be_sent(router: Router, upstream: Upstream, path: str, levels: int) -> None:
    """Near the limit of nesting a body is a 400 or it is served; it is never a failure of the router."""
    before = len(upstream.seen)
    response = post(router, path, b'{"prompt":"x",%b}' % deep(levels))
    assert response.status_code in (200, 400)
    assert len(upstream.seen) - before == (response.status_code == 200)


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v2/models/v/infer"])
def test_bytes_that_are_no_utf8_cost_no_permit(router: Router, upstream: Upstream, path: str) -> None:
    """A raw byte in a name that nobody looks at is the client's 400, before anything is sent."""
    before = len(upstream.seen)
    response = post(router, path, b'{"prompt":"x","inputs":[],"\xff":1}')
    assert (response.status_code, "byte 0xff at 27" in response.text) == (400, True)
    assert len(upstream.seen) == before


@pytest.mark.parametrize(("prompt", "status"), [("deep", 502), ("bytes", 200), ("floats", 200)])
def test_a_response_that_cannot_be_read_is_a_502(router: Router, prompt: str, status: int) -> None:
    """What is wrong with a model server's response is its fault; what is wrong where nobody looks is nobody's."""
    response = post(router, "/infer", b'{"prompt":"%b"}' % prompt.encode())
    assert response.status_code == status
    if status == 502:
        assert "nested too deeply" in response.json()["detail"]
    assert not any(event["level"] == "error" for event in router.events())


def test_curl_without_a_header_is_served(router: Router, upstream: Upstream) -> None:
    """`curl -d` declares a form; what was read as JSON goes on as JSON, plain."""
    form = "application/x-www-form-urlencoded"
    for path in ("/infer", "/v1/chat/completions", "/v2/models/v/infer"):
        body = b'{"prompt":"x","inputs":[]}'
        assert post(router, path, body, {"Content-Type": form}).status_code == 200
        assert upstream.seen[-1].headers["content-type"] == "application/json"


def test_a_body_that_is_compressed_is_refused_by_its_encoding(router: Router, upstream: Upstream) -> None:
    """415 names the encoding; a body that only says so goes on without the header."""
    gzip = {"Content-Encoding": "gzip"}
    for path in ("/infer", "/v1/chat/completions"):
        response = post(router, path, b"\x1f\x8b", gzip)
        assert (response.status_code, "Content-Encoding 'gzip'" in response.text) == (415, True)
        assert response.headers["Accept-Encoding"] == "identity"
        assert post(router, path, b'{"prompt":"x"}', gzip).status_code == 200
        assert "content-encoding" not in upstream.seen[-1].headers


def test_one_model_is_counted_and_the_same_one_runs(router: Router, upstream: Upstream) -> None:
    """A body that names the model twice, to parsers that ignore case or not, reaches no model server."""
    before = len(upstream.seen)
    for body in (b'{"model":"m","Model":"n"}', b'{"model":"nope","model":"m"}', b'{"Model":"m"}'):
        response = post(router, "/v1/chat/completions", body)
        assert (response.status_code, "`model`" in response.json()["error"]["message"]) == (400, True)
    assert len(upstream.seen) == before
    assert post(router, "/v1/chat/completions", b'{"model":"m","x":{"Model":1.50}}').status_code == 200
    assert upstream.seen[-1].body == b'{"model":"other","x":{"Model":1.50}}'
