"""Requests of a JSON access log (ACCESS_LOG=all), as they came."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import BinaryIO, NamedTuple

import msgspec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CLIENT_LEFT = 499
_REJECTED = 429
_BAD_REQUEST = 400
_SERVER_ERROR = 500
_MOST_LINE_BYTES = 1 << 20
"""No line of the router's is as long. What is not even text may have no end of a line at all."""


class LogError(ValueError):
    """The log holds nothing that can be replayed."""


class Line(msgspec.Struct, frozen=True):
    """What is read of a line. Times are milliseconds."""

    logger: str
    timestamp: str
    status: int
    total_ms: float
    queue_ms: float
    model_ms: float
    model: str = ""
    endpoint: str = ""
    rejection: str = ""


class Logged(NamedTuple):
    """One inference request. Times are whole microseconds, so that sums of them are exact."""

    at_us: int
    """When it arrived, since 1970."""
    model: str
    endpoint: str
    status: int
    queue_us: int
    model_us: int
    """How long it was inside the model; 0: it never was."""
    total_us: int
    rejection: str

    @property
    def client_left(self) -> bool:
        """Whether its client left before the response was complete."""
        return self.status == _CLIENT_LEFT

    @property
    def failed(self) -> bool:
        """Whether the model failed."""
        return bool(self.model_us) and self.status >= _SERVER_ERROR


class Log(NamedTuple):
    """The requests in order of arrival, and how many lines were something else."""

    requests: Sequence[Logged]
    other_lines: int


def read_log(log: BinaryIO) -> Log:
    """Returns the requests of a log. Lines of others, such as of a server's own events, are passed over.

    A line that is longer than the router's can be counts as several.

    Raises LogError if no request was served: how long requests take is not known then.
    """
    decoder = msgspec.json.Decoder(Line)
    found, others = [], 0
    for text in iter(partial(log.readline, _MOST_LINE_BYTES), b""):
        logged = None
        if text.lstrip().startswith(b"{"):
            try:
                logged = _logged(decoder.decode(text))
            except (msgspec.DecodeError, ValueError, OverflowError):
                pass
        if logged is None:
            others += 1
        else:
            found.append(logged)
    if not any(one.model_us for one in found):
        raise LogError(
            "the log holds no request that was served: it must be the router's own, written with ACCESS_LOG=all and "
            "LOG_FORMAT=json"
        )
    found.sort(key=lambda one: one.at_us)  # lines are in the order in which the requests ended
    return Log(found, others)


def _logged(line: Line) -> Logged | None:
    """Returns the request of a line, or None if it is none that asked for a permit."""
    if line.logger != "router.access" or not line.model:
        return None
    queue_us, model_us, total_us = (round(ms * 1000) for ms in (line.queue_ms, line.model_ms, line.total_ms))
    if min(queue_us, model_us, total_us) < 0:
        return None
    invalid = _BAD_REQUEST <= line.status < _SERVER_ERROR and line.status not in (_REJECTED, _CLIENT_LEFT)
    if invalid and not model_us:
        return None
    ended = datetime.fromisoformat(line.timestamp)
    ended_us = (ended if ended.tzinfo else ended.replace(tzinfo=UTC)) - _EPOCH
    at_us = ended_us // _MICROSECOND - total_us
    return Logged(at_us, line.model, line.endpoint, line.status, queue_us, model_us, total_us, line.rejection)
