"""What can go wrong, in the router's own words.

These errors know nothing of HTTP: `api/error_responses.py` maps each to a status code, in one place.
Every error carries a `code`, a stable word that programs may rely on, and a message for people.
"""


class RouterError(Exception):
    """Anything the router itself refuses or fails at."""

    code = "internal_error"


class SettingsError(RouterError):
    """A setting that can't be used. The message is one line: the variable, its value, what is allowed."""

    code = "bad_setting"


class InvalidRequest(RouterError):
    """A request body that can't be used. The message says where and what would be right."""

    code = "invalid_request"


class MalformedRequest(RouterError):
    """Bytes that are no request, or none that is accepted. Its status is the parser's: 400, 414, 417, 431 or 501."""

    code = "malformed_request"


class BodyStalled(RouterError):
    """A request body of which nothing more came for STALL_TIMEOUT_S, or that took longer than UPLOAD_TIMEOUT_S."""

    code = "request_timeout"


class BodyTooLarge(RouterError):
    """A request body longer than MAX_BODY_BYTES."""

    code = "body_too_large"


class UnsupportedBody(RouterError):
    """A request body that is not JSON by its own declaration (multipart)."""

    code = "unsupported_media_type"


class Draining(RouterError):
    """The server is shutting down and takes no new work."""

    code = "draining"


class Rejected(RouterError):
    """Overload: the request was refused and never reached a model.

    `retry_after` is a whole number of seconds, 1 to 60: when a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LimitReached(Rejected):
    """All permits are taken and there is no queue."""

    code = "limit_reached"


class QueueFull(Rejected):
    """All permits are taken and so is every place in the queue."""

    code = "queue_full"


class QueueTimeout(Rejected):
    """The request waited QUEUE_TIMEOUT_MS without getting a permit."""

    code = "queue_timeout"


class RoutesError(RouterError):
    """A routes file that can't be used. The message is one line: the file, the line, what is wrong, what is right."""

    code = "bad_routes"


class ModelNotFound(RouterError):
    """No model, or no version of it, of the name that was asked for."""

    code = "model_not_found"


class ProtocolMismatch(RouterError):
    """The model's servers don't speak the protocol that it was asked in."""

    code = "protocol_mismatch"


class ModelLimitReached(Rejected):
    """As many of the model's requests are in progress as its own `max_concurrency` allows."""

    code = "model_limit_reached"


class NoEndpoint(RouterError):
    """No endpoint of the model can take a request now.

    `retry_after` is a whole number of seconds: when the first is expected to, or None if nobody knows.
    """

    code = "no_endpoint"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelUnusable(RouterError):
    """No request at all can be served now: the reason for which the server is not ready."""

    code = "model_unusable"


class UpstreamError(RouterError):
    """A model server failed to answer."""


class UpstreamUnreachable(UpstreamError):
    """No connection to the model server; it has not seen the request."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """The model server let the time run out: for the first byte, between two, or in total."""

    code = "upstream_timeout"


class UpstreamBroken(UpstreamError):
    """The model server's answer broke off, or was no HTTP."""

    code = "upstream_broken"


class UpstreamErrorResponse(UpstreamError):
    """The model server answered `POST /infer` with an error of its own.

    `status` is its status, and `retry_after` what it said in the header of that name.
    """

    code = "upstream_error_response"

    def __init__(self, message: str, status: int, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class NoFreeSlot(RouterError):
    """Every row of the shared table belongs to a live worker."""

    code = "no_free_slot"


class SharedStateMismatch(RouterError):
    """The shared memory handed over by the previous binary has another layout or other limits."""

    code = "shared_state_mismatch"


class ClientGone(BaseException):
    """The client closed its connection: stop working for it.

    Thrown into the greenlet that serves the request, so it derives from BaseException, as GreenletExit does:
    a handler's `except Exception` must not take it for a failure of its own.
    """
