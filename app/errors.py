"""The router's own errors.

These errors know nothing of HTTP: `api/error_responses.py` maps each to a status code, in one place. Every error has a
`code`, a stable word that programs may rely on, and a message for people. The first paragraph of a docstring says when
the error occurs; docs/api.md's table of error codes is generated from it.
"""

from typing import NamedTuple


class Overload(NamedTuple):
    """The limit that made a request wait or be rejected, as it was at that instant."""

    limit_scope: str
    """One of `LIMIT_SCOPES`: whose limit it was."""
    limit: int
    in_flight: int
    """Requests that counted for the limit."""
    ahead: int = 0
    """Requests that waited in the queue before this one."""
    expected_wait_ms: int | None = None
    """None while nothing is known of how long requests take."""


LIMIT_SCOPES = ("router", "model", "tenant")
"""`MAX_CONCURRENCY`, or a `max_concurrency` of a model or of a tenant."""


class RouterError(Exception):
    """The router failed; its log has the reason under the response's `X-Request-Id`."""

    code = "internal_error"


class SettingsError(RouterError):
    """A setting has a value that is not allowed. The message is one line: the variable, its value, what is allowed."""

    code = "bad_setting"


class InvalidRequest(RouterError):
    """The body is not what the path takes, such as a JSON object with a string `prompt`.

    The message says where the mistake is and what is allowed.
    """

    code = "invalid_request"


class MalformedRequest(RouterError):
    """The bytes are not an HTTP request, or the request is one that the router does not accept.

    The parser determines the status.
    """

    code = "malformed_request"


class BodyStalled(RouterError):
    """No more of the body came for `STALL_TIMEOUT_S`, or the body took longer than `UPLOAD_TIMEOUT_S`."""

    code = "request_timeout"


class BodyTooLarge(RouterError):
    """The body is longer than `MAX_BODY_BYTES`, or than `MAX_UPLOAD_BYTES` if it is a form that is streamed."""

    code = "body_too_large"


class UnsupportedBody(RouterError):
    """The body is compressed, or multipart where the path takes JSON, or the reverse. Other types are read as JSON.

    `accepts` is the media type that the path takes.
    """

    code = "unsupported_media_type"

    def __init__(self, message: str, accepts: str = "application/json") -> None:
        super().__init__(message)
        self.accepts = accepts


class Draining(RouterError):
    """The server is shutting down and takes no new requests."""

    code = "draining"


class CutOff(RouterError):
    """The router stopped before the response was complete: the request outlasted `GRACEFUL_TIMEOUT_S`, or had not
    arrived."""

    code = "cut_off"


class ResponseStalled(RouterError):
    """Only in records: the client took no more of its response for `STALL_TIMEOUT_S`, so the router hung up."""

    code = "response_stalled"


class Rejected(RouterError):
    """Overload: the request was rejected and never reached a model.

    `retry_after` is a whole number of seconds, 1 to 60: an estimate of when a permit comes free.
    """

    def __init__(self, message: str, retry_after: int, overload: Overload | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.overload = overload


class LimitReached(Rejected):
    """All permits are taken and there is no queue."""

    code = "limit_reached"


class QueueFull(Rejected):
    """All permits are taken and the queue is full."""

    code = "queue_full"


class QueueTimeout(Rejected):
    """The request waited in the queue for `QUEUE_TIMEOUT_MS` without getting a permit."""

    code = "queue_timeout"


class RoutesError(RouterError):
    """A routes file is invalid. The message is one line: the file, the line, what is wrong, what is allowed."""

    code = "bad_routes"


class ModelNotFound(RouterError):
    """No model, or no version of the model, has the requested name."""

    code = "model_not_found"


class ResponseNotFound(RouterError):
    """The router does not know which endpoint created the response with this id, or that endpoint is served no longer.

    The newest responses are known, so many that it takes long until one is forgotten (docs/protocols.md).
    """

    code = "response_not_found"


class ProtocolMismatch(RouterError):
    """The model's endpoints do not speak the protocol of this path."""

    code = "protocol_mismatch"


class ModelLimitReached(Rejected):
    """The model has as many requests as its own `max_concurrency` allows; over this limit nothing is queued."""

    code = "model_limit_reached"


class TenantLimitReached(Rejected):
    """The tenant has as many requests as its `max_concurrency` allows; over this limit nothing is queued."""

    code = "tenant_limit_reached"


class KeysError(RouterError):
    """A keys file or a key set is invalid. The message is one line, and never holds a secret."""

    code = "bad_keys"


class Unauthorized(RouterError):
    """The request has no credential, or one that is not accepted. `WWW-Authenticate` says what is.

    `reason` is one of `UNAUTHORIZED`. `basic`: a password is accepted too, as browsers send it.
    """

    code = "unauthorized"

    def __init__(self, message: str, reason: str, *, basic: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.basic = basic


UNAUTHORIZED = ("missing", "invalid", "expired")
"""Why a request is not authorized: it has no credential, or one that is not accepted, or one that was accepted once."""


class AuthenticationUnavailable(RouterError):
    """The token can't be verified, because its issuer's keys have not been fetched yet."""

    code = "authentication_unavailable"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotAllowed(RouterError):
    """The model exists, and the caller may not use it."""

    code = "model_not_allowed"


class NoEndpoint(RouterError):
    """No endpoint of the model takes requests now.

    `retry_after` is a whole number of seconds until one is expected to, or None where that is not known.
    """

    code = "no_endpoint"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelUnusable(RouterError):
    """Only from `/readyz`: no model is usable; `detail` says why."""

    code = "model_unusable"


class UpstreamError(RouterError):
    """A model server did not return a complete response."""


class UpstreamUnreachable(UpstreamError):
    """No connection to a model server could be made; none has seen the request.

    `not_tried`: the trouble is the router's own, such as a lookup that failed, and tells nothing about the model
    server. `no_such_name`: the lookup found that the name does not exist.
    """

    code = "upstream_unreachable"

    def __init__(self, message: str, *, not_tried: bool = False, no_such_name: bool = False) -> None:
        super().__init__(message)
        self.not_tried = not_tried
        self.no_such_name = no_such_name


class UpstreamTimeout(UpstreamError):
    """The model server exceeded a timeout: first byte, idle, or total."""

    code = "upstream_timeout"


class UpstreamBroken(UpstreamError):
    """The model server closed the connection before the end of the response, or sent something other than HTTP."""

    code = "upstream_broken"


class UpstreamErrorResponse(UpstreamError):
    """Only from `/infer`: the model server returned an error; `detail` quotes it.

    `status` is the model server's status, and `retry_after` the value of its header of that name. `is_clients_fault`:
    the text says that the request is at fault.
    """

    code = "upstream_error_response"

    def __init__(
        self, message: str, status: int, retry_after: str | None = None, *, is_clients_fault: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.is_clients_fault = is_clients_fault


class NoFreeSlot(RouterError):
    """Every row of the shared table belongs to a live worker."""

    code = "no_free_slot"


class SharedStateMismatch(RouterError):
    """The shared memory handed over by the previous binary has another layout, other limits, or other codes."""

    code = "shared_state_mismatch"


class ClientGone(BaseException):
    """The client closed its connection, so work for it stops.

    It is thrown into the greenlet that serves the request. It derives from BaseException, as GreenletExit does, so
    that a handler's `except Exception` does not treat it as its own failure.
    """
