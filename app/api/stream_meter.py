"""What is measured of a response as it passes: the times of its output, its tokens, and where a stream ends.

Only a response of 200 to 299 to an inference request is read, and none with a Content-Encoding: it passes as it is, and
nothing is counted of it. A stream is read piece by piece before each is passed on, and is neither changed nor held
back.
"""

from app.api.exchange import Exchange
from app.http_fields import Headers
from app.native import monotonic
from app.observability.token_metrics import TokenMetrics
from app.protocols.event_stream import EventReader
from app.protocols.token_usage import TAIL_BYTES, TokenUsage, usage_at_end, usage_in


class StreamMeter:
    """Measures one event stream, with the times at which the router reads it."""

    __slots__ = ("_between", "_exchange", "_first_s", "_last_at", "_metrics", "_reader")

    def __init__(self, metrics: TokenMetrics, exchange: Exchange) -> None:
        self._metrics = metrics
        self._exchange = exchange
        self._between = metrics.inter_token_seconds(exchange.model)
        self._last_at = 0.0
        self._first_s: float | None = None
        self._reader = EventReader()

    def feed(self, piece: bytes) -> bool:
        """Measure a piece that has just come. Returns whether the event that ends the stream has come."""
        count = self._reader.feed(piece)
        if not count:
            return self._reader.ended
        now = monotonic()
        if self._last_at:
            self._between.observe(now - self._last_at)
        else:
            self._first_s = now - self._exchange.started
            self._metrics.first_token_seconds(self._exchange.model).observe(self._first_s)
        self._last_at = now
        while count > 1:
            self._between.observe(0.0)
            count -= 1
        return self._reader.ended

    def end(self) -> None:
        """Count the tokens that were seen, however the stream has ended."""
        _count_stream(self._reader, self._metrics, self._exchange, self._first_s)


class StreamEnd:
    """Looks for the end of an event stream of which nothing is counted."""

    __slots__ = ("_reader",)

    def __init__(self) -> None:
        self._reader = EventReader()

    def feed(self, piece: bytes) -> bool:
        """Returns whether the event that ends the stream has come, with this piece or before."""
        self._reader.feed(piece)
        return self._reader.ended

    def end(self) -> None:
        """There is nothing to count."""


class TailMeter:
    """Measures a JSON body that comes in pieces: its end says how many tokens it took."""

    __slots__ = ("_exchange", "_metrics", "_tail")

    def __init__(self, metrics: TokenMetrics, exchange: Exchange) -> None:
        self._metrics = metrics
        self._exchange = exchange
        self._tail = b""

    def feed(self, piece: bytes) -> bool:
        """Keep the end of what has come. Returns False: only the end of the body ends it."""
        self._tail = (self._tail + piece)[-TAIL_BYTES:] if len(piece) < TAIL_BYTES else piece[-TAIL_BYTES:]
        return False

    def end(self) -> None:
        """Count the tokens."""
        _count(usage_in(self._tail), self._metrics, self._exchange)


Meter = StreamMeter | StreamEnd | TailMeter


def meter_of(headers: Headers, metrics: TokenMetrics | None, exchange: Exchange) -> Meter | None:
    """Returns what reads a body with these headers, or None if nothing does. Without `metrics`, nothing is counted."""
    kind = _kind_of(headers)
    if kind == "text/event-stream":
        return StreamEnd() if metrics is None else StreamMeter(metrics, exchange)
    return TailMeter(metrics, exchange) if kind == "application/json" and metrics is not None else None


def count_whole(headers: Headers, body: bytes, metrics: TokenMetrics, exchange: Exchange) -> None:
    """Count the tokens of a body that came at once. The times of its events are not known."""
    kind = _kind_of(headers)
    if kind == "application/json":
        if exchange.trace is None:
            metrics.count_later(exchange.model, body)
        else:
            _count(usage_at_end(body), metrics, exchange)
    elif kind == "text/event-stream":
        reader = EventReader()
        reader.feed(body)
        _count_stream(reader, metrics, exchange, None)


def _count_stream(reader: EventReader, metrics: TokenMetrics, exchange: Exchange, first_s: float | None) -> None:
    """Count the tokens that a stream has said, or else its events."""
    usage = reader.tokens()
    if usage.output is None or not reader.usage_is_final():
        usage = TokenUsage(usage.input, None, usage.cached, usage.reasoning)
        metrics.count_events(exchange.model, reader.events)
    _count(usage, metrics, exchange, first_s)


def _count(usage: TokenUsage, metrics: TokenMetrics, exchange: Exchange, first_s: float | None = None) -> None:
    """Count these tokens. `first_s`: when the first came, in seconds from the request's arrival."""
    metrics.count(exchange.model, usage)
    if exchange.trace is not None:
        exchange.trace.generated(usage.input, usage.output, first_s)


def _kind_of(headers: Headers) -> str:
    """Returns the media type of a body, or "" if it is encoded."""
    kind = ""
    for name, value in headers:
        if name == "content-type":
            kind = value.partition(";")[0].strip().lower()
        elif name == "content-encoding" and value.lower() != "identity":
            return ""
    return kind
