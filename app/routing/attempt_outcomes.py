"""What an error that ended an attempt tells about the endpoint, and about the body of its response."""

from collections.abc import Iterator

from gevent import GreenletExit

from app.errors import BodyStalled, BodyTooLarge, ClientGone, CutOff, InvalidRequest, UpstreamError, UpstreamUnreachable
from app.protocols.calls import BodyStream
from app.routing.outlier_detection import Outcome


def outcome_of(error: BaseException, leaving: Outcome, rest: BodyStream | None) -> tuple[Outcome, str]:
    """Returns the outcome, and its code for the metrics.

    `leaving`: that of a client that leaves now. `rest`: the part of the request that was arriving while it was sent.
    """
    if isinstance(error, (InvalidRequest, BodyTooLarge, BodyStalled)) or (
        isinstance(error, ClientGone) and rest is not None and not rest.ended_at
    ):
        return Outcome.ABANDONED, "499"  # the endpoint waited for the client
    if isinstance(error, UpstreamUnreachable) and error.not_tried:
        return Outcome.ABANDONED, error.code
    if isinstance(error, UpstreamError):
        return Outcome.FAILURE, error.code
    if isinstance(error, (ClientGone, GeneratorExit)):
        return leaving, "499"
    if isinstance(error, GreenletExit):  # thrown by a drain: the endpoint may still be at work
        return Outcome.ABANDONED, CutOff.code
    return Outcome.ABANDONED, "500"


def broken(error: UpstreamError) -> Iterator[bytes]:
    """A body that breaks off."""
    raise error
    yield b""
