"""Which variables turn tracing on, what spans are made of, and what becomes of those that nobody takes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from app.api.exchange import Exchange
from app.observability import otel_export, tracing
from app.observability.metrics import Metrics
from app.observability.otel import RequestTrace, Tracing
from app.observability.otel_attributes import of_call, of_environ
from app.protocols import openai
from app.protocols.calls import Call
from tests.support.local_router import LocalRouter

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
RATIO = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
ENVIRON = {"REQUEST_METHOD": "POST", "wsgi.url_scheme": "http", "PATH_INFO": "/p", "SERVER_PROTOCOL": "HTTP/1.1"}


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalRouter]:
    """A router, which is not traced."""
    with LocalRouter(tmp_path) as started:
        yield started


@pytest.fixture
def metrics(local: LocalRouter) -> Metrics:
    """Its metrics."""
    return local.router.metrics


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "  "},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_without_a_receiver_nothing_is_traced(environ: dict[str, str], metrics: Metrics) -> None:
    """It is opt-in: it takes an endpoint or an exporter, and the SDK is not even imported without them."""
    with patch.dict(sys.modules, {"app.observability.otel": None}), capture_logs() as logged:
        assert tracing.load(environ, metrics) is None
    assert logged == []


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        ENDPOINT | RATIO | {"OTEL_TRACES_SAMPLER_ARG": "0.01"},
        ENDPOINT | {"OTEL_TRACES_SAMPLER": "Always_On"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "false", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
    ],
)
def test_a_receiver_turns_it_on(environ: dict[str, str], metrics: Metrics) -> None:
    """An endpoint is enough, and so is the exporter, whose endpoint has a default."""
    assert isinstance(tracing.load(environ, metrics), Tracing)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER='zipkin': must be otlp or none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc': must be http/protobuf"),
        (ENDPOINT | {"OTEL_BSP_SCHEDULE_DELAY": "0"}, "OTEL_BSP_SCHEDULE_DELAY='0': must be a whole number above 0"),
        (ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE='many'"),
        (
            ENDPOINT | {"OTEL_TRACES_SAMPLER": "some"},
            "OTEL_TRACES_SAMPLER='some': must be one of parentbased_always_on,",
        ),
        (ENDPOINT | RATIO | {"OTEL_TRACES_SAMPLER_ARG": "1%"}, "OTEL_TRACES_SAMPLER_ARG='1%': must be a number from 0"),
        (ENDPOINT | RATIO | {"OTEL_TRACES_SAMPLER_ARG": "nan"}, "OTEL_TRACES_SAMPLER_ARG='nan': must be a number from"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL that begins"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must be a URL"),
        (ENDPOINT | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9000"}, "must be at most OTEL_BSP_MAX_QUEUE_SIZE, 2048"),
    ],
)
def test_what_cannot_be_done_is_one_line(environ: dict[str, str], says: str, metrics: Metrics) -> None:
    """The router runs untraced, and its log says why."""
    with capture_logs() as logged:
        assert tracing.load(environ, metrics) is None
    (line,) = logged
    assert says in line["reason"]


def test_a_missing_extra_is_one_line(metrics: Metrics) -> None:
    """Where OpenTelemetry is not installed, the log says what to install."""
    with patch.dict(sys.modules, {"app.observability.otel": None}), capture_logs() as logged:
        assert tracing.load(ENDPOINT, metrics) is None
    (line,) = logged
    assert "install the extra `otel`" in line["reason"]


def test_a_small_queue_has_small_batches(metrics: Metrics) -> None:
    """Only the queue's size was set: the default size of a batch must not be an error."""
    assert tracing.load(ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "3"}, metrics) is not None


class Traced:
    """A trace, and the spans that it ended."""

    def __init__(self, *, gen_ai: bool) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.exchange = Exchange(ENVIRON)
        self.trace = RequestTrace(provider.get_tracer("test"), ENVIRON, "/route", self.exchange.started, gen_ai)

    def attributes(self) -> dict[str, Mapping[str, Any]]:
        """End the trace; the attributes of its spans by name."""
        self.exchange.status = 200
        self.trace.end(self.exchange)
        return {span.name: span.attributes or {} for span in self._memory.get_finished_spans()}


def call() -> Call:
    """A chat, whose client has a context already."""
    headers = [("traceparent", "00-of-the-client"), ("a", "b")]
    return Call("POST", "/v1/chat/completions?key=secret", headers, b"body", adapter=openai.ADAPTER)


@pytest.mark.parametrize(("gen_ai", "name"), [(True, "chat m"), (False, "POST")])
def test_tokens_are_those_of_the_last_attempt(gen_ai: bool, name: str) -> None:
    """Whatever counts them says so before the end. One span has them by the GenAI conventions: sums are right."""
    traced = Traced(gen_ai=gen_ai)
    traced.trace.attempt("m", "http://one:8000", call()).ended("503")
    last = traced.trace.attempt("m", "https://other/base", call())
    last.first_byte(last.began + 0.25)
    last.ended("200")
    traced.trace.generated(11, None, 0.5)
    spans = traced.attributes()
    server = spans["POST /route"]
    assert server["router.tokens.input"] == 11
    assert "router.tokens.output" not in server
    assert (server["router.time_to_first_token_s"], server["router.time_to_first_byte_s"]) == (0.5, 0.25)
    assert server["router.endpoint"] == "https://other/base"
    attempt = spans[name]
    assert attempt.get("gen_ai.usage.input_tokens") == (11 if gen_ai else None)
    assert attempt.get("gen_ai.response.time_to_first_chunk") == (0.5 if gen_ai else None)
    assert not gen_ai or (attempt["server.address"], attempt["server.port"]) == ("other", 443)


def test_an_attempts_context_takes_the_place_of_any_other() -> None:
    """A call that is sent twice has one context at a time, and keeps its other headers."""
    traced, sent = Traced(gen_ai=False), call()
    seen = []
    for _ in range(2):
        traced.trace.attempt("m", "http://h", sent).ended("200")
        (context,) = [value for name, value in sent.headers if name == "traceparent"]
        seen.append(context)
    assert seen[0].split("-")[1] == seen[1].split("-")[1] == traced.trace.trace_id
    assert seen[0] != seen[1]
    assert ("a", "b") in sent.headers


def test_an_attempt_without_an_end_ends_with_its_request() -> None:
    """Whatever goes wrong, no span stays open."""
    traced = Traced(gen_ai=False)
    traced.trace.attempt("m", "http://h", call())
    assert traced.attributes()["POST"]["error.type"] == "_OTHER"


def test_a_query_string_is_in_no_span() -> None:
    """It may hold a credential."""
    _, attributes = of_call("m", "http://h:1", call(), gen_ai=False)
    assert attributes["url.full"] == "http://h:1/v1/chat/completions"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("h", ("h", None)),
        ("h:81", ("h", 81)),
        ("[::1]:81", ("::1", 81)),
        ("[::1]", ("::1", None)),
        ("", (None, None)),
        ("h:" + "9" * 400, ("h:" + "9" * 254, None)),
    ],
)
def test_host_and_port_of_a_request(host: str, expected: tuple[str | None, int | None]) -> None:
    """A Host header of any form, however long."""
    attributes = of_environ(ENVIRON | {"HTTP_HOST": host}, "/route")
    assert (attributes.get("server.address"), attributes.get("server.port")) == expected


class Refusing(SpanExporter):
    """Takes spans as a test says."""

    def __init__(self) -> None:
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        return self.result


def test_each_span_is_counted_once(local: LocalRouter, metrics: Metrics) -> None:
    """Exported, failed and dropped spans add up to those that ended, also after the processor has stopped."""
    inner = Refusing()
    counting = otel_export.CountingExporter(inner, metrics)
    processor = otel_export.CountingProcessor(counting, 4, 600_000, 4, dropped=metrics.spans["dropped"])
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    inner.result = SpanExportResult.FAILURE
    for _ in range(3):
        tracer.start_span("x").end()
    processor.force_flush()
    inner.result = SpanExportResult.SUCCESS
    for _ in range(3):
        tracer.start_span("x").end()
    processor.flush_and_stop(5)
    assert counting.taken == 6
    page = local.ask("GET", "/metrics").body
    for result, count in (("exported", 3), ("failed", 3), ("dropped", 0)):
        assert f'router_trace_spans_total{{result="{result}"}} {count}.0' in page
