"""Traces: what a request's spans say, what goes to model servers, and that no receiver of spans can do any harm."""

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import requests

from tests.support.clients import CHAT, Crowd, chat, raw_request
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.router import Router, until
from tests.support.upstream import Hold, Reply, Seen, Upstream, send_empty

pytestmark = pytest.mark.slow

NO_CHECKS = {"interval_s": 0}
STEADY = {"consecutive_failures": 1000, "failure_rate": 1, "min_requests": 1_000_000}
SERVER = f"POST {CHAT}"
SPANS = 'router_trace_spans_total{{result="{}"}}'


class Client(NamedTuple):
    """A client that has a trace."""

    trace_id: str
    span_id: str
    flags: str = "01"

    @property
    def headers(self) -> dict[str, str]:
        """The header fields of its context."""
        return {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags}", "tracestate": "vendor=value"}


def client(flags: str = "01") -> Client:
    """A client with a trace of its own."""
    return Client(secrets.token_hex(16), secrets.token_hex(8), flags)


class Stage(NamedTuple):
    """A router that exports quickly, its receiver, and the servers of its models."""

    router: Router
    receiver: OtlpReceiver
    one: Upstream
    other: Upstream
    spare: Upstream

    def reset(self, answer: Callable[[Seen, Reply], object] = send_empty) -> None:
        """Have both servers of `m` do this."""
        for upstream in (self.one, self.other, self.spare):
            upstream.reset(answer if upstream is not self.spare else send_empty)

    def seen(self) -> list[Seen]:
        """What both servers of `m` got."""
        return [*self.one.seen, *self.other.seen]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Shared by tests that leave it idle."""
    folder = tmp_path_factory.mktemp("tracing")
    path = folder / "routes.json"
    with ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        one, other, spare = (stack.enter_context(Upstream()) for _ in range(3))
        common = {"health_check": NO_CHECKS, "ejection": STEADY, "retry_budget": 1}
        models = [
            {"name": "m", "endpoints": [one.url, f"{other.url}/below"], "fallback": ["spare"], **common},
            {"name": "spare", "endpoints": [spare.url], **common},
            {"name": "t", "endpoints": [spare.url], "protocol": "v2", **common},
        ]
        path.write_text(json.dumps({"models": models}))
        settings: dict[str, Any] = {
            "WEB_CONCURRENCY": 1,
            "MAX_CONCURRENCY": 1,
            "QUEUE_SIZE": 1,
            "QUEUE_TIMEOUT_MS": 20_000,
            "ACCESS_LOG": "all",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=of-the-receiver",
            "OTEL_BSP_SCHEDULE_DELAY": 20,
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=front-door,deployment.environment.name=test",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental",
        }
        router = stack.enter_context(Router(folder, ROUTES_FILE=path, **settings))
        yield Stage(router, receiver, one, other, spare)


def contexts(seen: list[Seen]) -> list[str]:
    """The ids of the spans that model servers were told of."""
    return [each.headers["traceparent"].split("-")[2] for each in seen]


def test_a_request_is_a_span_with_one_for_each_attempt(stage: Stage) -> None:
    """A retry is a span of its own. Each attempt's own id is in the context that its model server gets."""
    stage.reset(lambda seen, reply: reply.send(503 if len(stage.seen()) == 1 else 200))
    who = client()
    got = chat(stage.router, headers={**who.headers, "User-Agent": "tester/1", "X-Request-Id": "id-of-it"})
    assert got.status_code == 200
    spans = stage.receiver.trace(who.trace_id, 3)
    (server,), attempts = spans[SERVER], spans["chat m"]
    assert (server.kind, server.parent_id, server.failed) == ("server", who.span_id, False)
    assert {each.kind for each in attempts} == {"client"}
    assert {each.parent_id for each in attempts} == {server.span_id}
    assert [each.failed for each in attempts] == [True, False]
    assert server.begin <= attempts[0].begin < attempts[0].end <= attempts[1].end <= server.end
    first = next(seen for seen in stage.seen() if seen.headers["traceparent"].split("-")[2] == attempts[0].span_id)
    assert sorted(contexts(stage.seen())) == sorted(each.span_id for each in attempts)
    assert {seen.headers["traceparent"].split("-")[1] for seen in stage.seen()} == {who.trace_id}
    assert {seen.headers["tracestate"] for seen in stage.seen()} == {"vendor=value"}
    assert {seen.headers["traceparent"][-2:] for seen in stage.seen()} == {"01"}
    port = stage.other.port if first.path.startswith("/below") else stage.one.port
    assert attempts[0].attributes["server.port"] == port
    assert {each.attributes["server.port"] for each in attempts} == {stage.one.port, stage.other.port}
    assert attempts[0].attributes["error.type"] == "503"
    assert [each.attributes["http.response.status_code"] for each in attempts] == [503, 200]
    assert [each.attributes.get("http.request.resend_count") for each in attempts] == [None, 1]
    assert attempts[1].attributes.items() >= {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "router.model": "m",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
    }.items()  # fmt: skip
    assert attempts[1].attributes["url.full"].endswith(CHAT)
    assert attempts[1].events == ["first byte"]
    assert server.attributes.items() >= {
        "http.request.method": "POST",
        "http.route": CHAT,
        "url.path": CHAT,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": stage.router.port,
        "client.address": "127.0.0.1",
        "user_agent.original": "tester/1",
        "router.model": "m",
        "router.request_id": "id-of-it",
        "router.attempts": 2,
    }.items()  # fmt: skip
    assert server.attributes["router.endpoint"].startswith(f"http://127.0.0.1:{attempts[1].attributes['server.port']}")
    assert 0 < server.attributes["router.time_to_first_byte_s"] < 20
    assert server.resource.items() >= {
        "service.name": "front-door",
        "deployment.environment.name": "test",
        "telemetry.sdk.language": "python",
    }.items()  # fmt: skip
    assert stage.router.logged("id-of-it")["trace_id"] == who.trace_id


def test_a_failover_is_a_part_of_the_same_trace(stage: Stage) -> None:
    """The attempts at both models have the request's span as their parent."""
    stage.reset(lambda seen, reply: reply.send(500))
    who = client()
    assert chat(stage.router, headers=who.headers).headers["x-router-model"] == "spare"
    spans = stage.receiver.trace(who.trace_id, 3)
    (failed,), (served,), (server,) = spans["chat m"], spans["chat spare"], spans[SERVER]
    assert failed.parent_id == served.parent_id == server.span_id
    assert (failed.failed, served.failed, server.failed) == (True, False, False)
    assert server.attributes["router.model"] == "spare"
    assert contexts(stage.spare.seen) == [served.span_id]


def test_the_wait_is_a_span_and_a_rejection_has_its_code(stage: Stage) -> None:
    """A request that waits for a permit has a child for that. One that is rejected has no other span."""
    hold = Hold()
    stage.reset(hold)
    inside, waiting, rejected = client(), client(), client()
    crowd = Crowd(lambda n: chat(stage.router, headers=(inside, waiting)[n].headers).status_code).send(1)
    try:
        until(lambda: len(stage.seen()) == 1, "one request is in the model")
        crowd.send(1)
        until(lambda: stage.router.metrics()["router_queued_requests"] == 1, "and one waits")
        assert chat(stage.router, headers=rejected.headers).status_code == 429
    finally:
        hold.release()
        crowd.join()
    assert crowd.counts() == {200: 2}
    spans = stage.receiver.trace(waiting.trace_id, 3)
    (server,), (queue,), (attempt,) = spans[SERVER], spans["queue"], spans["chat m"]
    assert (queue.kind, queue.parent_id) == ("internal", server.span_id)
    assert server.begin <= queue.begin < queue.end <= attempt.begin
    assert abs((queue.end - queue.begin) / 1e9 - server.attributes["router.queue_s"]) < 1
    assert set(stage.receiver.trace(inside.trace_id, 2)) == {SERVER, "chat m"}
    (span,) = stage.receiver.trace(rejected.trace_id, 1)[SERVER]
    attributes = span.attributes
    assert (attributes["router.rejection"], attributes["error.type"]) == ("queue_full", "queue_full")
    assert attributes["http.response.status_code"] == 429
    assert not span.failed, "a 4xx is no failure of the server"


def test_errors_of_the_router_have_their_code(stage: Stage) -> None:
    """A request that is not served says why, invalid ones included; only a 5xx is a failure."""
    stage.reset()
    for body, status, code in (
        (b"{", 400, "invalid_request"),
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found"),
    ):
        who = client()
        got = requests.post(stage.router.url + CHAT, data=body, headers=who.headers, timeout=20)
        assert got.status_code == status
        (span,) = stage.receiver.trace(who.trace_id, 1)[SERVER]
        assert (span.attributes["error.type"], span.failed) == (code, False)
    who = client()
    stage.reset(lambda seen, reply: reply.raw(b""))
    headers = {**who.headers, "X-Router-Fallback": "none"}
    assert chat(stage.router, headers=headers).status_code == 502
    spans = stage.receiver.trace(who.trace_id, 2)
    assert (spans[SERVER][0].attributes["error.type"], spans[SERVER][0].failed) == ("upstream_broken", True)
    assert (spans["chat m"][0].attributes["error.type"], spans["chat m"][0].failed) == ("upstream_broken", True)


def test_a_stream_ends_its_spans_with_its_last_byte(stage: Stage) -> None:
    """The first byte is an event long before the end. A client that leaves is a 499."""
    go = Hold()

    def streams(seen: Seen, reply: Reply) -> None:
        reply.begin()
        reply.chunk(b"data: 1\n\n")
        go._go.wait(20)
        reply.chunk(b"data: 2\n\n")
        reply.chunk()

    stage.reset(streams)
    who = client()
    body = {"model": "m", "stream": True, "messages": []}
    with requests.post(stage.router.url + CHAT, json=body, headers=who.headers, stream=True, timeout=20) as got:
        pieces = got.iter_content(None)
        assert next(pieces) == b"data: 1\n\n"
        assert not stage.receiver.of_trace(who.trace_id)
        now = time.time_ns()
        go.release()
        assert b"".join(pieces) == b"data: 2\n\n"
    spans = stage.receiver.trace(who.trace_id, 2)
    assert spans[SERVER][0].end > now
    assert spans["chat m"][0].end > now
    assert spans[SERVER][0].attributes["router.time_to_first_byte_s"] < 20

    hold = Hold()
    stage.reset(hold)
    who = client()
    head = f"traceparent: {who.headers['traceparent']}\r\n"
    with raw_request(stage.router.port, head=head):
        until(lambda: len(stage.seen()) == 1, "the request is in the model")
    spans = stage.receiver.trace(who.trace_id, 2)
    hold.release()
    assert spans["POST /infer"][0].attributes["http.response.status_code"] == 499
    assert not spans["POST /infer"][0].failed


def test_a_request_that_is_sent_again_says_so(stage: Stage) -> None:
    """A kept connection that was closed costs no new attempt, but is an event of the one that there is."""
    count = 0

    def answer(seen: Seen, reply: Reply) -> None:
        nonlocal count
        count += 1
        if count == 2:
            reply.raw(b"")
        else:
            reply.send(200)

    stage.reset()
    stage.spare.reset(answer)
    url = f"{stage.router.url}/v2/models/t"
    requests.get(url, timeout=20)
    who = client()
    assert requests.get(url, headers=who.headers, timeout=20).status_code == 200
    spans = stage.receiver.trace(who.trace_id, 2)
    assert sorted(spans["GET"][0].events) == ["first byte", "sent again"]


def test_the_client_decides_whether_its_trace_is_sampled(stage: Stage) -> None:
    """One that is not sampled is passed on as that, and nothing of it is exported."""
    stage.reset()
    unsampled, sampled = client("00"), client()
    for who in (unsampled, sampled):
        assert chat(stage.router, headers=who.headers).status_code == 200
    stage.receiver.trace(sampled.trace_id, 2)
    assert stage.receiver.of_trace(unsampled.trace_id) == []
    of_unsampled = [seen.headers for seen in stage.seen() if unsampled.trace_id in seen.headers["traceparent"]]
    assert [headers["traceparent"][-2:] for headers in of_unsampled] == ["00"]
    assert unsampled.span_id not in of_unsampled[0]["traceparent"]


@pytest.mark.parametrize("given", [None, "00-nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
def test_a_request_without_a_trace_begins_one(stage: Stage, given: str | None) -> None:
    """Without a context, or with a malformed one, whose tracestate is dropped, there is a new trace."""
    stage.reset()
    headers = {} if given is None else {"traceparent": given, "tracestate": "vendor=value"}
    before = len(stage.receiver.spans)
    assert chat(stage.router, headers=headers).status_code == 200
    (seen,) = stage.seen()
    spans = stage.receiver.trace(seen.headers["traceparent"].split("-")[1], 2)
    assert spans[SERVER][0].parent_id == ""
    assert "tracestate" not in seen.headers
    assert len(stage.receiver.spans) == before + 2


def test_spans_tell_no_secrets(stage: Stage) -> None:
    """No body, prompt, query string, credential or cookie is exported; the receiver gets its own credential."""
    stage.reset(lambda seen, reply: reply.send(200, b'{"choices": "secret-of-the-response"}'))
    who = client()
    headers = {
        **who.headers,
        "Authorization": "Bearer secret-of-the-client",
        "Cookie": "sid=secret-of-the-session",
        "X-Api-Key": "secret-key",
        "baggage": "user=secret-user",
    }
    body = {"model": "m", "messages": [{"role": "user", "content": "secret prompt"}]}
    got = requests.post(f"{stage.router.url}{CHAT}?key=secret-query", json=body, headers=headers, timeout=20)
    assert got.status_code == 200
    stage.receiver.trace(who.trace_id, 2)
    assert not [body for body in stage.receiver.bodies if b"secret" in body]
    assert stage.receiver.headers[-1]["api-key"] == "of-the-receiver"
    assert stage.seen()[0].headers["baggage"] == "user=secret-user", "it passes to the model server"


def test_probes_and_scrapes_are_not_traced(stage: Stage) -> None:
    """Only requests for a model are, or a trace backend would hold little else."""
    stage.reset()
    before = len(stage.receiver.spans)
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/nowhere"):
        requests.get(stage.router.url + path, headers=client().headers, timeout=20)
    who = client()
    chat(stage.router, headers=who.headers)
    stage.receiver.trace(who.trace_id, 2)
    assert {span.trace_id for span in stage.receiver.spans[before:]} == {who.trace_id}


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    """A receiver of the test's own."""
    with OtlpReceiver() as started:
        yield started


def traced(start: Callable[..., Router], receiver: OtlpReceiver, **variables: Any) -> Router:
    """A router with one worker that exports to this receiver."""
    settings = {"SIMULATED_LATENCY_MS": 0, "WEB_CONCURRENCY": 1, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    return start(**settings | variables)


def test_what_was_not_exported_yet_is_when_a_worker_ends(start: Callable[..., Router], receiver: OtlpReceiver) -> None:
    """Spans that wait for the next batch are sent in the drain: on HUP, and on TERM."""
    router = traced(start, receiver, OTEL_BSP_SCHEDULE_DELAY=600_000, WEB_CONCURRENCY=2)
    for _ in range(10):
        assert router.infer().status_code == 200
    old = set(router.workers())
    router.signal(signal.SIGHUP)
    receiver.wait(lambda: len(receiver.spans) == 10, "the old workers have sent theirs")
    until(lambda: len(router.workers()) == 2 and not old & set(router.workers()) and router.ready(), "others serve")
    for _ in range(5):
        assert router.infer().status_code == 200
    router.signal(signal.SIGTERM)
    assert router.wait_exit() == 0
    receiver.wait(lambda: len(receiver.spans) == 15, "the others have sent theirs")
    assert {span.resource["service.name"] for span in receiver.spans} == {"inference-router"}
    assert len({span.span_id for span in receiver.spans}) == 15, "no two workers draw the same ids"


def test_a_receiver_that_is_silent_delays_nobody(start: Callable[..., Router], receiver: OtlpReceiver) -> None:
    """While an export hangs, requests are served, the queue drops and counts what it has no room for, and a drain ends.

    If the export, or a wait of it, blocked the event loop, each request would take as long as its timeout.
    """
    receiver.silent = True
    sizes = {"OTEL_BSP_MAX_QUEUE_SIZE": 8, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 4, "OTEL_BSP_SCHEDULE_DELAY": 10}
    router = traced(start, receiver, **sizes, OTEL_EXPORTER_OTLP_TIMEOUT=30, GRACEFUL_TIMEOUT_S=1)
    assert router.infer().status_code == 200
    receiver.wait(lambda: receiver.bodies, "an export hangs")
    began = time.monotonic()
    assert {router.infer().status_code for _ in range(40)} == {200}
    assert time.monotonic() - began < 20
    until(lambda: router.metrics()[SPANS.format("dropped")] == 41 - 1 - 8, "one is being sent, and eight wait")
    assert router.metrics()[SPANS.format("exported")] == 0
    router.signal(signal.SIGTERM)
    assert router.wait_exit(15) == 0


def test_exports_that_fail_are_counted_and_logged_once(start: Callable[..., Router], receiver: OtlpReceiver) -> None:
    """A receiver that refuses costs a line a minute and a number in the metrics. It is not given up."""
    receiver.status = 400
    router = traced(start, receiver, OTEL_BSP_SCHEDULE_DELAY=10, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{receiver.url}/x")
    for count in range(1, 6):
        assert router.infer().status_code == 200
        until(lambda: router.metrics()[SPANS.format("failed")] == count, "it is counted")
    (line,) = [event for event in router.events() if event["logger"] == "router.tracing"]
    assert (line["event"], line["spans"]) == ("spans were not exported", 1)
    assert "400" in line["reason"]
    receiver.status = 200
    assert router.infer().status_code == 200
    receiver.wait(lambda: len(receiver.spans) == 1, "the next one arrives")
    until(lambda: router.metrics()[SPANS.format("exported")] == 1, "and is counted")


def test_a_wrong_variable_is_one_line_and_no_traces(start: Callable[..., Router], receiver: OtlpReceiver) -> None:
    """Telemetry does not stop the service, and what is not traced is served as it is without these variables."""
    router = traced(start, receiver, OTEL_BSP_MAX_QUEUE_SIZE=0)
    assert router.infer().status_code == 200
    (line,) = [event for event in router.events() if event["logger"] == "router.tracing"]
    assert "OTEL_BSP_MAX_QUEUE_SIZE='0'" in line["reason"]
    assert receiver.bodies == []
