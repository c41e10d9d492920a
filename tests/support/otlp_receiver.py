"""A receiver of OTLP over HTTP, which decodes what it gets, or fails, or keeps silent, as a test says."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.support.http_server import HttpServer, QuietConnections


class Span(NamedTuple):
    """A span as it came. Times are nanoseconds of the epoch, ids hexadecimal."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    begin: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[str]
    resource: dict[str, Any]


class OtlpReceiver(HttpServer):
    """`with OtlpReceiver() as receiver:` serves on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.status = 200
        self.silent = False
        """Whether it takes requests and says nothing."""
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self._changed = threading.Condition()
        self._over = threading.Event()
        outer = self

        class Handler(QuietConnections, BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._changed:
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.bodies.append(body)
                    if outer.status == 200 and not outer.silent:
                        outer.spans += _decoded(body)
                    outer._changed.notify_all()
                if outer.silent:
                    outer._over.wait(60)
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Handler)

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        super().__exit__(*failure)

    def wait(self, holds: Callable[[], object], what: str, seconds: float = 20) -> None:
        """Return once this holds. It is looked at again after every request."""
        with self._changed:
            assert self._changed.wait_for(holds, seconds), what

    def trace(self, trace_id: str, spans: int) -> dict[str, list[Span]]:
        """The spans of a trace by their names, in order of their beginnings, once there are so many."""
        self.wait(lambda: len(self.of_trace(trace_id)) >= spans, f"{spans} spans of {trace_id}")
        found: dict[str, list[Span]] = {}
        for span in sorted(self.of_trace(trace_id), key=lambda span: span.begin):
            found.setdefault(span.name, []).append(span)
        return found

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have come."""
        return [span for span in self.spans if span.trace_id == trace_id]


def _decoded(body: bytes) -> list[Span]:
    spans = []
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            spans += [_span(message, resource) for message in of_scope.spans]
    return spans


def _span(message: SpanMessage, resource: dict[str, Any]) -> Span:
    return Span(
        name=message.name,
        kind=SpanMessage.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_").lower(),
        trace_id=message.trace_id.hex(),
        span_id=message.span_id.hex(),
        parent_id=message.parent_span_id.hex(),
        tracestate=message.trace_state,
        begin=message.start_time_unix_nano,
        end=message.end_time_unix_nano,
        failed=message.status.code == message.status.STATUS_CODE_ERROR,
        attributes=_values(message.attributes),
        events=[event.name for event in message.events],
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
