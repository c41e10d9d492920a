"""Spans by OpenTelemetry's SDK: a server span for a request, and children for its wait and each of its attempts.

Names and attributes are those of the semantic conventions (HTTP, and GenAI where it is asked for). What they have no
name for is under `router.`. No span has a body, a prompt, a query string or a credential.

The SDK is used as it is: sampler, propagators, resource and exporter are configured by its own variables. Spans are
started by hand, without a current context: a context variable would be one more thing that every greenlet carries.
"""

import time
from collections.abc import Mapping
from importlib import metadata
from wsgiref.types import WSGIEnvironment

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode

from app.native import monotonic
from app.observability import otel_export
from app.observability.metrics import Metrics
from app.observability.otel_attributes import Attributes, of_call, of_environ, of_outcome, of_request
from app.observability.request_trace import TracedRequest
from app.protocols.calls import Call

_SCOPE = "inference-router"
_GEN_AI = "gen_ai_latest_experimental"


class Tracing:
    """The tracing of one server. It traces once it was started, which every worker does for itself."""

    def __init__(self, given: Mapping[str, str], metrics: Metrics) -> None:
        """`given`: the variables of OpenTelemetry that are set. Raises whatever is wrong with one."""
        otel_export.check(given)
        self._given = given
        self._metrics = metrics
        self._gen_ai = _GEN_AI in given.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").replace(" ", "").split(",")
        self._processor: otel_export.CountingProcessor | None = None
        self._tracer: trace.Tracer

    def start(self) -> None:
        """Make what exports. It starts a greenlet, so the worker calls this after the fork, with its event loop."""
        self._processor = otel_export.processor(self._given, self._metrics)
        resource = Resource.create({SERVICE_NAME: _SCOPE} if _is_nameless(self._given) else {})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer(_SCOPE, metadata.version("inference-router"))

    def begin(self, environ: WSGIEnvironment, route: str, began: float) -> "RequestTrace | None":
        """Returns the trace of a request that arrived at `began`, a part of its client's trace if that has one."""
        if self._processor is None:
            return None
        return RequestTrace(self._tracer, environ, route, began, self._gen_ai)

    def stop(self, seconds: float) -> None:
        """Export what is left, for so long at the most."""
        if self._processor is not None:
            self._processor.flush_and_stop(seconds)


class RequestTrace:
    """See `request_trace.Trace`."""

    def __init__(self, tracer: trace.Tracer, environ: WSGIEnvironment, route: str, began: float, gen_ai: bool) -> None:
        self._tracer = tracer
        self._gen_ai = gen_ai
        self._epoch_ns = time.time_ns() - int(monotonic() * 1e9)
        self._attempts: list[AttemptTrace] = []
        self._code = ""
        self._tokens: Attributes = {}
        self._first_token_s: float | None = None
        parent = propagate.extract(environ, Context(), _FIELDS)
        attributes, method = of_environ(environ, route), environ["REQUEST_METHOD"]
        self._span = tracer.start_span(
            f"{method} {route}", parent, SpanKind.SERVER, attributes, start_time=self._at(began)
        )
        self._context = trace.set_span_in_context(self._span, parent)
        self.trace_id = trace.format_trace_id(self._span.get_span_context().trace_id)

    def waited(self, began: float) -> None:
        """See `request_trace.Trace`."""
        span = self._tracer.start_span("queue", self._context, start_time=self._at(began))
        span.end(self._at(monotonic()))

    def attempt(self, model: str, url: str, call: Call) -> "AttemptTrace":
        """See `protocols.calls.RequestTrace`."""
        name, attributes = of_call(model, url, call, self._gen_ai)
        if self._attempts:
            attributes["http.request.resend_count"] = len(self._attempts)
        began = monotonic()
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, attributes, start_time=self._at(began))
        fields: dict[str, str] = {}
        propagate.inject(fields, trace.set_span_in_context(span, self._context))
        call.headers[:] = [header for header in call.headers if header[0] not in fields]
        call.headers.extend(fields.items())
        attempt = AttemptTrace(span, url, began)
        self._attempts.append(attempt)
        return attempt

    def failed(self, code: str) -> None:
        """See `request_trace.Trace`."""
        self._code = code

    def generated(self, input_tokens: int | None, output_tokens: int | None, first_token_s: float | None) -> None:
        """See `request_trace.Trace`."""
        counts = {"input": input_tokens, "output": output_tokens}
        self._tokens = {kind: tokens for kind, tokens in counts.items() if tokens is not None}
        self._first_token_s = first_token_s

    def end(self, request: TracedRequest) -> None:
        """See `request_trace.Trace`. Attempts end here too, as only now the tokens of the last one are known."""
        now = monotonic()
        if self._span.is_recording():
            self._span.set_attributes(of_request(request, self._code) | self._generation())
            if request.status >= 500:
                self._span.set_status(Status(StatusCode.ERROR))
        for attempt in self._attempts:
            self._end_attempt(attempt, now)
        self._span.end(self._at(now))

    def _generation(self) -> Attributes:
        """Returns which endpoint responded, when, and with how many tokens."""
        attributes: Attributes = {f"router.tokens.{kind}": tokens for kind, tokens in self._tokens.items()}
        if self._first_token_s is not None:
            attributes["router.time_to_first_token_s"] = round(self._first_token_s, 6)
        if self._attempts:
            last = self._attempts[-1]
            attributes |= {"router.endpoint": last.url, "router.attempts": len(self._attempts)}
            if last.first_byte_at is not None:
                attributes["router.time_to_first_byte_s"] = round(last.first_byte_at - last.began, 6)
            if self._gen_ai:
                self._describe_generation(last)
        return attributes

    def _describe_generation(self, last: "AttemptTrace") -> None:
        """Say how many tokens the last attempt took, by the GenAI conventions: once, so that sums are right."""
        for kind, tokens in self._tokens.items():
            last.span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
        if self._first_token_s is not None:
            last.span.set_attribute("gen_ai.response.time_to_first_chunk", round(self._first_token_s, 6))

    def _end_attempt(self, attempt: "AttemptTrace", now: float) -> None:
        span, first_byte_at = attempt.span, attempt.first_byte_at
        span.set_attributes(of_outcome(attempt.code))
        if first_byte_at is not None:
            span.add_event("first byte", timestamp=self._at(first_byte_at))
        for at in attempt.repeated_at:
            span.add_event("sent again", timestamp=self._at(at))
        if not attempt.code.isdecimal() or int(attempt.code) >= 400:  # to a client, as the router is one here
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._at(attempt.ended_at or now))

    def _at(self, seconds: float) -> int:
        """Returns a time of `monotonic()` in nanoseconds of the epoch."""
        return self._epoch_ns + int(seconds * 1e9)


class AttemptTrace:
    """See `protocols.calls.AttemptTrace`."""

    __slots__ = ("began", "code", "ended_at", "first_byte_at", "repeated_at", "span", "url")

    def __init__(self, span: trace.Span, url: str, began: float) -> None:
        self.span = span
        self.url = url
        self.began = began
        self.code = ""
        self.ended_at = 0.0
        self.first_byte_at: float | None = None
        self.repeated_at: list[float] = []

    def first_byte(self, at: float) -> None:
        """See the protocol."""
        self.first_byte_at = at

    def repeated(self) -> None:
        """See the protocol."""
        self.repeated_at.append(monotonic())

    def ended(self, code: str) -> None:
        """See the protocol."""
        self.code, self.ended_at = code, monotonic()


class _Fields(Getter[WSGIEnvironment]):
    """How propagators read the header fields of an environ."""

    def get(self, carrier: WSGIEnvironment, key: str) -> list[str] | None:
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return None if value is None else [value]

    def keys(self, carrier: WSGIEnvironment) -> list[str]:
        return [key[5:].replace("_", "-").lower() for key in carrier if key.startswith("HTTP_")]


_FIELDS = _Fields()


def _is_nameless(given: Mapping[str, str]) -> bool:
    return "OTEL_SERVICE_NAME" not in given and "service.name=" not in given.get("OTEL_RESOURCE_ATTRIBUTES", "")
