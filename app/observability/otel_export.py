"""The way of spans to their receiver: a bounded queue, batches, OTLP over HTTP. What does not arrive is counted.

The SDK's batch processor and exporter are made in the worker, after the fork. Under gevent's monkey patching the
processor's thread is a greenlet, its lock and its event are gevent's, and the exporter's sockets wait in the event
loop. So a receiver that is slow or hangs delays nobody: a request only appends to the queue.
"""

import logging
from collections.abc import Mapping, Sequence

import gevent
import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from app.native import monotonic
from app.observability.metric_cells import Count
from app.observability.metrics import Metrics

_LOGGED_EVERY_S = 60.0
_MAX_REASON = 300
_QUEUE, _BATCH, _DELAY = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"
_SAMPLER, _RATIO = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_BY_RATIO = "traceidratio"
_SAMPLERS = (
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
    *("always_on", "always_off", _BY_RATIO),
)
"""Those of OpenTelemetry's specification ("SDK environment variables") that the SDK has; the first is the default."""
_QUEUE_SPANS = 2048
_BATCH_SPANS = 64
"""The SDK's default of 512 would encode for tens of milliseconds, in which no request proceeds."""
_DELAY_MS = 5000

_log = structlog.get_logger("router.tracing")


def processor(given: Mapping[str, str], metrics: Metrics) -> "CountingProcessor":
    """Returns the processor that exports as the variables say. Starts a greenlet."""
    sizes = _sizes(given)
    return CountingProcessor(CountingExporter(OTLPSpanExporter(), metrics), *sizes, dropped=metrics.spans["dropped"])


def check(given: Mapping[str, str]) -> None:
    """Raises ValueError, or what the SDK raises, for variables by which no processor can be made."""
    _sizes(given)
    _check_sampler(given)
    OTLPSpanExporter().shutdown()  # type: ignore[no-untyped-call]


def _check_sampler(given: Mapping[str, str]) -> None:
    """The SDK would take its default for what it does not know."""
    name = given.get(_SAMPLER, _SAMPLERS[0])
    if name.lower() not in _SAMPLERS:
        raise ValueError(f"{_SAMPLER}={name!r}: must be one of {', '.join(_SAMPLERS)}")
    if not name.lower().endswith(_BY_RATIO) or _RATIO not in given:
        return
    try:
        ratio = float(given[_RATIO])
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{_RATIO}={given[_RATIO]!r}: must be a number from 0 to 1")


def _sizes(given: Mapping[str, str]) -> tuple[int, int, int]:
    queue = _positive(given, _QUEUE, _QUEUE_SPANS)
    batch = _positive(given, _BATCH, min(_BATCH_SPANS, queue))
    if batch > queue:
        raise ValueError(f"{_BATCH}={batch}: must be at most {_QUEUE}, {queue}")
    return queue, _positive(given, _DELAY, _DELAY_MS), batch


def _positive(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{name}={text!r}: must be a whole number above 0")
    return int(text)


class CountingExporter(SpanExporter):
    """Counts what another exporter does, and logs its failures now and then."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics) -> None:
        self.taken = 0
        """How many spans were handed over, arrived or not."""
        self._exporter = exporter
        self._exported, self._failed = metrics.spans["exported"], metrics.spans["failed"]
        self._unlogged = 0
        self._logged_at = -_LOGGED_EVERY_S
        self._reasons = _LastMessage.of_sdk()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans, perhaps several times, within OTEL_EXPORTER_OTLP_TIMEOUT."""
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            _count(self._exported, len(spans))
        else:
            _count(self._failed, len(spans))
            self._unlogged += len(spans)
            if monotonic() - self._logged_at >= _LOGGED_EVERY_S:
                self._logged_at = monotonic()
                _log.warning("spans were not exported", spans=self._unlogged, reason=self._reasons.text)
                self._unlogged = 0
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


class CountingProcessor(BatchSpanProcessor):
    """The SDK's batch processor, whose overflow is counted."""

    def __init__(self, exporter: CountingExporter, queue: int, delay_ms: int, batch: int, *, dropped: Count) -> None:
        super().__init__(exporter, queue, delay_ms, batch)
        self._counting = exporter
        self._most_queued = queue
        self._accepted = 0
        self._dropped = dropped

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, or drop it if the queue is full.

        The queue holds what was accepted and not taken by the exporter. The counts agree with it at any moment: nothing
        yields between the SDK's taking a batch out and its handing that over.
        """
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._accepted - self._counting.taken >= self._most_queued:
            self._dropped.inc()
            return
        self._accepted += 1
        super().on_end(span)

    def flush_and_stop(self, seconds: float) -> None:
        """Export what is queued, for so long at the most. What is left then is dropped."""
        try:
            with gevent.Timeout(seconds):
                self.shutdown()  # type: ignore[no-untyped-call]
        except gevent.Timeout:
            pass
        _count(self._dropped, self._accepted - self._counting.taken)


def _count(counter: Count, number: int) -> None:
    for _ in range(number):
        counter.inc()


class _LastMessage(logging.Handler):
    """Keeps the last message of the SDK's loggers, which write one for every failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    @classmethod
    def of_sdk(cls) -> "_LastMessage":
        """Returns the handler of all of the SDK's loggers. Their messages go nowhere else."""
        logger, handler = logging.getLogger("opentelemetry"), cls()
        logger.propagate = False
        logger.handlers = [handler]
        return handler

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:_MAX_REASON]
