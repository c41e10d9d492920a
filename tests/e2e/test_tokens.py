"""Tokens and the times between them, as the metrics show them after real streams and bodies."""

import gzip
import json
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import pytest
import requests

from app.protocols.token_usage import TokenUsage
from tests.support.clients import CHAT, chat
from tests.support.router import Router, until
from tests.support.transcripts import ALL, ANTHROPIC, OPENAI_WITHOUT_USAGE, VLLM, Transcript
from tests.support.upstream import Reply, Seen, Upstream

pytestmark = pytest.mark.slow

ShareRouted = Callable[..., tuple[Router, Upstream]]
Start = Callable[..., Router]

FIRST = "router_time_to_first_token_seconds"
BETWEEN = "router_inter_token_seconds"
BODY = b'{"choices":[{"message":{"content":"Hi"}}],"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}'


class Counted:
    """What a router has counted of the model `m` since this was made."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._before = Counter(router.metrics())

    def get(self, name: str, **labels: str) -> float:
        """How much a series has grown."""
        labelled = ",".join(f'{label}="{value}"' for label, value in sorted({"model": "m", **labels}.items()))
        return self._router.metrics().get(f"{name}{{{labelled}}}", 0) - self._before[f"{name}{{{labelled}}}"]

    def tokens(self) -> dict[str, float]:
        """The kinds that have grown, with their source."""
        found = {
            f"{kind} by {source}": self.get("router_tokens_total", kind=kind, source=source)
            for kind in TokenUsage.__struct_fields__
            for source in ("usage", "events")
        }
        return {name: count for name, count in found.items() if count}

    def reach(self, tokens: dict[str, float]) -> None:
        """Wait until these are counted: a worker keeps whole bodies for up to a second before it reads them."""
        until(lambda: self.tokens() == tokens, f"{tokens} are counted, and not {self.tokens()}")

    def times(self) -> tuple[float, float]:
        """How many times to a first token, and how many between two, were observed."""
        return self.get(f"{FIRST}_count"), self.get(f"{BETWEEN}_count")


def by_usage(usage: TokenUsage) -> dict[str, float]:
    """What `Counted.tokens` returns of this usage."""
    return {f"{kind} by usage": count for kind, count in msgspec.structs.asdict(usage).items() if count}


def sends(events: Iterable[bytes], **headers: str) -> Callable[[Seen, Reply], None]:
    """A model server's answer: this stream, event by event."""

    def answer(_: Seen, reply: Reply) -> None:
        reply.begin(200, **headers)
        for event in events:
            reply.chunk(event)
        reply.chunk()

    return answer


@pytest.mark.parametrize("transcript", ALL.values(), ids=ALL)
def test_stream_is_counted_once_and_passes_byte_for_byte(share_routed: ShareRouted, transcript: Transcript) -> None:
    """Usage where the server gives it, else events; a time to the first event with output, and one between any two."""
    router, _ = share_routed(sends(transcript.events))
    counted = Counted(router)
    assert chat(router, stream=True).content == b"".join(transcript.events)
    expected = by_usage(transcript.usage)
    if not transcript.final:
        expected.pop("output by usage", None)
        expected["output by events"] = len(transcript.output)
    counted.reach(expected)
    assert counted.times() == (1, len(transcript.output) - 1)


@pytest.mark.parametrize(
    ("transcript", "sent", "expected"),
    [
        pytest.param(VLLM, 4, {"output by events": 3}, id="before the usage came"),
        pytest.param(
            ANTHROPIC,
            9,
            {"output by events": 3, "input by usage": 135, "cached by usage": 100},
            id="after a part of it",
        ),
        pytest.param(OPENAI_WITHOUT_USAGE, 1, {}, id="before any output"),
    ],
)
def test_client_that_leaves_is_counted_until_then(
    share_routed: ShareRouted, transcript: Transcript, sent: int, expected: dict[str, float]
) -> None:
    """What was generated was paid for, whoever is there to read it."""
    hung_up = threading.Event()

    def answer(_: Seen, reply: Reply) -> None:
        reply.begin()
        for event in transcript.events[:sent]:
            reply.chunk(event)
        if reply.wait_hung_up():
            hung_up.set()

    router, _ = share_routed(answer)
    counted, last = Counted(router), transcript.events[sent - 1]
    body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
    with socket.create_connection(("127.0.0.1", router.port), timeout=20) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        got = b""
        while last not in got:
            got += sock.recv(65536)
    assert hung_up.wait(20)
    until(lambda: counted.get("router_requests_total", code="499", route=CHAT) == 1, "the client is gone")
    assert counted.tokens() == expected


def test_stream_that_its_server_breaks_off_is_counted_until_then(share_routed: ShareRouted) -> None:
    """As one that the client leaves."""
    passed = threading.Event()

    def answer(_: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"".join(VLLM.events[:3]))
        passed.wait(20)
        reply.raw(b"zz\r\n")

    router, _ = share_routed(answer)
    counted = Counted(router)
    got = requests.post(router.url + CHAT, json={"model": "m", "messages": []}, stream=True, timeout=20)
    pieces = got.iter_content(None)
    assert next(pieces) == b"".join(VLLM.events[:3])
    passed.set()
    with pytest.raises(requests.RequestException):
        next(pieces)
    until(lambda: counted.get("router_requests_total", code="502", route=CHAT) == 1, "it has broken off")
    assert counted.tokens() == {"output by events": 2}
    assert counted.times() == (1, 1)


def whole(_: Seen, reply: Reply) -> None:
    """A response of known length."""
    reply.send(200, BODY)


def in_chunks(_: Seen, reply: Reply) -> None:
    """A response whose length nobody knows."""
    reply.begin(Content_Type="application/json; charset=utf-8")
    for at in range(0, len(BODY), 7):
        reply.chunk(BODY[at : at + 7])
    reply.chunk()


def long(_: Seen, reply: Reply) -> None:
    """A response that is not read to its end before it is passed on."""
    reply.send(200, b'{"x":"' + b"x" * 200_000 + b'",' + BODY[1:])


def stream_of_known_length(_: Seen, reply: Reply) -> None:
    """A stream that is there as a whole."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5}}\n\n'
    reply.send(200, usage, Content_Type="text/event-stream")


@pytest.mark.parametrize("answer", [whole, in_chunks, long, stream_of_known_length])
def test_body_is_counted_however_it_comes(share_routed: ShareRouted, answer: Callable[[Seen, Reply], None]) -> None:
    """Its usage counts once. It is no stream of tokens, so there are no times."""
    router, _ = share_routed(answer)
    counted = Counted(router)
    assert chat(router).status_code == 200
    counted.reach({"input by usage": 9, "output by usage": 5})
    assert counted.times() == (0, 0)


def test_infer_counts_the_tokens_of_the_chat_that_it_made(share_routed: ShareRouted) -> None:
    """Its response has no usage, the model server's has."""
    router, _ = share_routed(whole)
    counted = Counted(router)
    assert router.infer().json()["output"] == "Hi"
    counted.reach({"input by usage": 9, "output by usage": 5})


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        pytest.param(500, {}, BODY, id="an error"),
        pytest.param(200, {"Content_Encoding": "gzip"}, gzip.compress(BODY), id="compressed"),
        pytest.param(200, {"Content_Type": "text/plain"}, BODY, id="something else"),
        pytest.param(200, {}, b"{}", id="nothing to count"),
    ],
)
def test_what_can_not_be_counted_passes_uncounted(
    share_routed: ShareRouted, status: int, headers: dict[str, str], body: bytes
) -> None:
    """An error took no tokens, and an encoded body is not read."""
    router, _ = share_routed(lambda _, reply: reply.send(status, body, **headers))
    counted = Counted(router)
    got = requests.post(router.url + CHAT, json={"model": "m", "messages": []}, stream=True, timeout=20)
    assert (got.status_code, got.raw.read()) == (status, body)
    assert counted.tokens() == {}


def test_worker_that_ends_has_counted_every_body(start: Start, serve: Callable[..., Upstream]) -> None:
    """What it has kept to read later is read before it ends."""
    router = start(MODEL_REF="m", BACKENDS=serve(whole).url, WEB_CONCURRENCY=1)
    counted = Counted(router)
    (before,) = router.workers()
    for _ in range(3):
        assert chat(router).status_code == 200
    router.signal(signal.SIGHUP)
    until(lambda: before not in router.workers(), "the worker has ended")
    counted.reach({"input by usage": 27, "output by usage": 15})


def test_compressed_stream_passes_uncounted(share_routed: ShareRouted) -> None:
    """Its bytes say nothing before they are decoded."""
    events = gzip.compress(b"".join(VLLM.events))
    router, _ = share_routed(sends([events], Content_Encoding="gzip"))
    counted = Counted(router)
    got = requests.post(router.url + CHAT, json={"model": "m", "messages": []}, stream=True, timeout=20)
    assert got.raw.read() == events
    assert (counted.tokens(), counted.times()) == ({}, (0, 0))


def test_simulated_model_is_counted_and_unknown_models_are_no_labels(start: Start) -> None:
    """Chat, completions, embeddings, with and without a stream; a name that no route has is nowhere on the page."""
    router = start(MODEL_REF="m", SIMULATED_LATENCY_MS=0)
    counted = Counted(router)
    words = [{"role": "user", "content": "one two three"}]
    assert chat(router, model="nobody").status_code == 404
    assert chat(router, messages=words).status_code == 200
    assert chat(router, messages=words, stream=True, stream_options={"include_usage": True}).status_code == 200
    counted.reach({"input by usage": 6, "output by usage": 6})
    assert chat(router, messages=words, stream=True).status_code == 200
    for path, body in (("completions", {"prompt": "one two"}), ("embeddings", {"input": "one two three"})):
        requests.post(f"{router.url}/v1/{path}", json={"model": "m", **body}, timeout=20).raise_for_status()
    counted.reach({"input by usage": 11, "output by usage": 8, "output by events": 3})
    assert counted.times() == (2, 4)
    assert "nobody" not in requests.get(f"{router.url}/metrics", timeout=20).text
