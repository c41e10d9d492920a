"""The response of a model server on its way to the client: whole, or piece by piece as it comes.

**A stream is delivered with the event that ends it** (event_stream.py), once that is written to the client. The client
may leave then, as OpenAI's library does, and has been served. Only the connection to the model server needs the rest of
the body: it can be kept once that was read to its end. That takes a second and `_MOST_REST_BYTES` at most, and whatever
becomes of it, the response is complete.

A client that leaves at any moment is counted as one of two things, by this order:

1. The piece that has the last byte of the event is yielded. The server asks for the next one when the kernel has taken
   all of it. If the client leaves before, the write fails, or ClientGone is thrown into it: 499.
2. `deliver` stops the watch on the client. Nothing yields to another greenlet between the end of the write and this, so
   ClientGone can't be thrown there.
3. From then on only the model server is waited for. A write that fails closes `_rest`, which reads on without writing.

A body of known length ends with its last byte instead: a client knows by the length that it lacks something.
"""

from collections.abc import Iterator
from http import HTTPStatus

import falcon

from app.api.exchange import Exchange
from app.api.stream_meter import Meter, count_whole, meter_of
from app.native import monotonic
from app.observability.token_metrics import TokenMetrics
from app.protocols.calls import Reply
from app.protocols.problem import phrase

_MULTIPLE_CHOICES = HTTPStatus.MULTIPLE_CHOICES.value  # a member of an enumeration is looked up by a call
_MOST_REST_BYTES = 1 << 16
"""What follows the last event is a comment or a second end. Whoever sends more than this is not waited for."""


def relay(reply: Reply, resp: falcon.Response, exchange: Exchange, began: float, tokens: TokenMetrics | None) -> None:
    """Pass the model server's response on: at once if all of it is there, else as it comes.

    `tokens` counts those of the response; None: they are not counted. `began` is when the model got the request.
    """
    resp.status = f"{reply.status} {phrase(reply.status)}"
    succeeded = reply.status < _MULTIPLE_CHOICES
    if isinstance(reply.body, tuple):
        body = resp.data = b"".join(reply.body)
        if succeeded and tokens is not None:
            count_whole(reply.headers, body, tokens, exchange)
    else:
        if reply.length is not None:
            resp.content_length = reply.length
        meter = meter_of(reply.headers, tokens, exchange) if succeeded else None
        resp.stream = _timed(reply, exchange, began, meter)
    exchange.reply_headers = reply.headers  # bypasses Falcon, which checks each again; last, as errors have none


def _timed(reply: Reply, exchange: Exchange, began: float, meter: Meter | None) -> Iterator[bytes]:
    pieces = iter(reply.body)
    try:
        yield b""  # the head goes out now: the first piece may be long in coming
        if meter is None:
            yield from pieces
        else:
            for piece in pieces:
                has_ended = meter.feed(piece)
                yield piece
                if has_ended and reply.length is None:
                    exchange.deliver()
                    reply.expect_end()
                    yield from _rest(pieces)
                    break
    finally:
        exchange.model_s = monotonic() - began
        if meter is not None:
            meter.end()


def _rest(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields what follows the last event. It is read to its end even if the client leaves, which closes this."""
    left, client_reads = _MOST_REST_BYTES, True
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            return
        if client_reads:
            try:
                yield piece
            except GeneratorExit:
                client_reads = False
