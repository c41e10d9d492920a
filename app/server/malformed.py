"""The response to bytes that never became a request for the application: its status, its form, and its line in the log.

gunicorn's parser raises; here its errors become responses, as `app/api/error_responses.py` does it for all others.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

from gunicorn.http import errors

from app.errors import MalformedRequest, RouterError
from app.native import join_response, server_timing
from app.observability.telemetry_headers import request_id
from app.protocols import anthropic, problem
from app.protocols.interfaces import ErrorBody


class UnsupportedVersion(errors.ParseException):
    """The major version of HTTP is higher than 1."""


_STATUS: dict[type[Exception], HTTPStatus] = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.ForbiddenProxyRequest: HTTPStatus.FORBIDDEN,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    UnsupportedVersion: HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    errors.ConfigurationProblem: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidResponseHeader: HTTPStatus.INTERNAL_SERVER_ERROR,  # these two are the application's fault
    errors.InvalidResponseHeaderName: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_WORDS: dict[type[Exception], str] = {
    errors.InvalidRequestLine: "the request line is not valid",
    errors.InvalidRequestMethod: "the method is not valid",
    errors.InvalidHTTPVersion: "the version of HTTP is not valid",
    errors.InvalidHeader: "a header field is not valid",
    errors.InvalidHeaderName: "the name of a header field is not valid",
    errors.ObsoleteFolding: "a header field is folded over several lines",
    errors.UnsupportedTransferCoding: "no transfer coding but chunked is supported",
    errors.ExpectationFailed: "no expectation but 100-continue can be met",
    errors.InvalidProxyLine: "the PROXY line is not valid",
}
"""What is said of gunicorn's errors whose own text repeats what the client sent. That may be a key or a password at a
wrong place, and the log has more readers than the client."""
_NAMED = frozenset(
    (
        *("accept", "authorization", "connection", "content-length", "content-type", "cookie", "host", "origin"),
        *("transfer-encoding", "user-agent", "x-api-key", "x-request-id"),
    )
)
"""The header fields whose names are shown. What else stands where a name should may be anything."""
_BARE_LF = "bare LF as line terminator"
_TO_ANTHROPIC = re.compile(rb"[A-Z]+ (?:https?://[^/ ]*)?/v1/messages[/? ]", re.IGNORECASE)
_ORIGIN = re.compile(rb"\r\norigin:[ \t]*([\x21-\x7e]+)", re.IGNORECASE)


def origin_in(data: bytes) -> str:
    """Returns the origin of the page that sent the request with this head, or "". The head may be malformed."""
    found = _ORIGIN.search(data.partition(b"\r\n\r\n")[0])
    return found[1].decode() if found else ""


def form_for(request_line: bytes) -> ErrorBody:
    """Returns the form of errors for what begins with this line, as far as it can be read."""
    return anthropic.error_body if _TO_ANTHROPIC.match(request_line) else problem.error_body


def status_of(error: Exception) -> HTTPStatus:
    """Returns the status of the response to a request that could not be parsed; 500 for any other error."""
    otherwise = HTTPStatus.BAD_REQUEST if isinstance(error, errors.ParseException) else HTTPStatus.INTERNAL_SERVER_ERROR
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), otherwise)


def detail_of(status: HTTPStatus, error: Exception) -> str:
    """Returns the detail for the client and the log. Of the request it repeats well-known names of fields only."""
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        return "the router failed; see its log"
    words = _WORDS.get(type(error))
    if words is None:  # it says what is wrong in words of its own
        return f"{problem.phrase(status)}: {error}"
    place = str(getattr(error, "hdr", getattr(error, "req", "")))
    shown = f": {place}" if place == _BARE_LF or place.lower() in _NAMED else ""
    return f"{problem.phrase(status)}: {words}{shown}"


def response(
    status: HTTPStatus,
    detail: str,
    more: Iterable[tuple[str, str]] = (),
    error_body: ErrorBody = problem.error_body,
) -> bytes:
    """Returns the whole response, `more` header fields included."""
    code = RouterError.code if status is HTTPStatus.INTERNAL_SERVER_ERROR else MalformedRequest.code
    content_type, body = error_body(status, code, detail)
    fields = [
        ("Connection", "close"),
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", request_id(None)),
        ("Server-Timing", server_timing(0, 0, 0)),
        *more,
    ]
    return join_response(f"{status.value} {problem.phrase(status)}", fields, []) + body
