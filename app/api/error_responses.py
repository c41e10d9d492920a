"""Errors become answers, here and nowhere else: problem documents (RFC 9457), or what clients of a protocol look for.

Under `/v1/` that is OpenAI's error object; under `/v2` the problem document has a member `error` too, as Open Inference
Protocol v2 wants it.
"""

from http import HTTPStatus

import falcon
import structlog
from msgspec import UNSET

from app.api import error_forms as problem
from app.api.exchange import ENVIRON_KEY
from app.errors import (
    BodyStalled,
    BodyTooLarge,
    Draining,
    InvalidRequest,
    LimitReached,
    ModelLimitReached,
    ModelNotFound,
    NoEndpoint,
    ProtocolMismatch,
    QueueFull,
    QueueTimeout,
    RouterError,
    UnsupportedBody,
    UpstreamBroken,
    UpstreamErrorResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_STATUS: dict[type[RouterError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    BodyStalled: HTTPStatus.REQUEST_TIMEOUT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    LimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    QueueTimeout: HTTPStatus.TOO_MANY_REQUESTS,
    Draining: HTTPStatus.SERVICE_UNAVAILABLE,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    ProtocolMismatch: HTTPStatus.BAD_REQUEST,
    ModelLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    NoEndpoint: HTTPStatus.SERVICE_UNAVAILABLE,
    UpstreamUnreachable: HTTPStatus.BAD_GATEWAY,
    UpstreamBroken: HTTPStatus.BAD_GATEWAY,
    UpstreamTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}

_log = structlog.get_logger("router.problems")


def install(app: "falcon.App[falcon.Request, falcon.Response]") -> None:
    """Have every error that leaves a resource answered as a problem document."""
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(RouterError, _router_error)


def answer(req: falcon.Request, resp: falcon.Response, status: int, code: str, detail: str) -> None:
    """Answer with an error, in the form that the path's clients look for."""
    phrase = problem.phrase(status)
    resp.status = f"{status} {phrase}"
    if req.path.startswith("/v1/"):
        resp.content_type = falcon.MEDIA_JSON
        resp.data = problem.openai_error(status, detail, code)
    else:
        resp.content_type = problem.CONTENT_TYPE
        of_v2 = req.path == "/v2" or req.path.startswith("/v2/")
        resp.data = problem.document(phrase, status, detail, code, error=detail if of_v2 else UNSET)


def _router_error(req: falcon.Request, resp: falcon.Response, error: RouterError, _: object) -> None:
    seconds = getattr(error, "retry_after", None)
    if seconds is not None:
        resp.set_header("Retry-After", str(seconds))
    status = error.status if isinstance(error, UpstreamErrorResponse) else _STATUS.get(type(error))
    if status is None:
        _unexpected(req, resp, error, None)  # none that a request should meet
    else:
        answer(req, resp, status, error.code, str(error))


def _http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _: object) -> None:
    """Falcon's own: no such path, wrong method, a header that can't be read."""
    status = HTTPStatus(error.status_code)
    if error.headers:
        resp.set_headers(error.headers)
    detail = error.description or _detail(req, status)
    code = InvalidRequest.code if status is HTTPStatus.BAD_REQUEST else status.name.lower()
    answer(req, resp, status, code, detail)


def _detail(req: falcon.Request, status: HTTPStatus) -> str:
    if status is HTTPStatus.NOT_FOUND:
        return f"nothing is served at {req.path}"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{req.path} does not take {req.env[ENVIRON_KEY].method}; see Allow"
    return status.description


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, _: object) -> None:
    request_id = req.env[ENVIRON_KEY].request_id
    _log.error("unexpected error", request_id=request_id, path=req.path, exc_info=error)
    detail = f"the router failed; its log has the reason under request id {request_id}"
    answer(req, resp, HTTPStatus.INTERNAL_SERVER_ERROR, RouterError.code, detail)
