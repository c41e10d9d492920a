"""Errors become problem documents (RFC 9457), here and nowhere else."""

from http import HTTPStatus

import falcon
import structlog

from app import problem
from app.errors import (
    BodyStalled,
    BodyTooLarge,
    Draining,
    InvalidRequest,
    LimitReached,
    QueueFull,
    QueueTimeout,
    Refused,
    RouterError,
    UnsupportedBody,
)
from app.exchange import ENVIRON_KEY

_STATUS: dict[type[RouterError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    BodyStalled: HTTPStatus.REQUEST_TIMEOUT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    LimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    QueueTimeout: HTTPStatus.TOO_MANY_REQUESTS,
    Draining: HTTPStatus.SERVICE_UNAVAILABLE,
}

_log = structlog.get_logger("router.problems")


def install(app: "falcon.App[falcon.Request, falcon.Response]") -> None:
    """Have every error that leaves a resource answered as a problem document."""
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(RouterError, _router_error)


def answer(resp: falcon.Response, status: HTTPStatus, code: str, detail: str) -> None:
    """Answer with a problem document."""
    resp.status = f"{status.value} {status.phrase}"
    resp.content_type = problem.CONTENT_TYPE
    resp.data = problem.document(status.phrase, status.value, detail, code)


def _router_error(req: falcon.Request, resp: falcon.Response, error: RouterError, _: object) -> None:
    if isinstance(error, Refused):
        resp.set_header("Retry-After", str(error.retry_after))
    status = _STATUS.get(type(error))
    if status is None:
        _unexpected(req, resp, error, None)  # none that a request should meet
    else:
        answer(resp, status, error.code, str(error))


def _http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _: object) -> None:
    """Falcon's own: no such path, wrong method, a header that can't be read."""
    status = HTTPStatus(error.status_code)
    if error.headers:
        resp.set_headers(error.headers)
    detail = error.description or _detail(req, status)
    code = InvalidRequest.code if status is HTTPStatus.BAD_REQUEST else status.name.lower()
    answer(resp, status, code, detail)


def _detail(req: falcon.Request, status: HTTPStatus) -> str:
    if status is HTTPStatus.NOT_FOUND:
        return f"nothing is served at {req.path}"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{req.path} does not take {req.method}; see Allow"
    return status.description


def _unexpected(req: falcon.Request, resp: falcon.Response, error: Exception, _: object) -> None:
    request_id = req.env[ENVIRON_KEY].request_id
    _log.error("unexpected error", request_id=request_id, path=req.path, exc_info=error)
    detail = f"the router failed; its log has the reason under request id {request_id}"
    answer(resp, HTTPStatus.INTERNAL_SERVER_ERROR, RouterError.code, detail)
