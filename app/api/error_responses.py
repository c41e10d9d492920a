"""Errors become responses, here and nowhere else.

The form of an error is that of the operation whose route matched, or of its protocol. Where nothing is served, it is
that of the root below which the path lies. Everywhere else it is a problem document (RFC 9457).
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import falcon
import structlog
from falcon.routing import CompiledRouter

from app.api.admin.access import NOT_HERE
from app.api.exchange import ENVIRON_KEY
from app.errors import (
    AuthenticationUnavailable,
    BodyStalled,
    BodyTooLarge,
    CutOff,
    Draining,
    InvalidRequest,
    LimitReached,
    ModelLimitReached,
    ModelNotAllowed,
    ModelNotFound,
    ModelUnusable,
    NoEndpoint,
    Overload,
    ProtocolMismatch,
    QueueFull,
    QueueTimeout,
    ResponseNotFound,
    RouterError,
    TenantLimitReached,
    Unauthorized,
    UnsupportedBody,
    UpstreamBroken,
    UpstreamErrorResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.protocols import problem
from app.protocols.adapters import error_forms
from app.protocols.interfaces import ErrorBody, ProtocolAdapter

_STATUS: dict[type[RouterError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    BodyStalled: HTTPStatus.REQUEST_TIMEOUT,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    LimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    QueueTimeout: HTTPStatus.TOO_MANY_REQUESTS,
    Draining: HTTPStatus.SERVICE_UNAVAILABLE,
    CutOff: HTTPStatus.SERVICE_UNAVAILABLE,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    ResponseNotFound: HTTPStatus.NOT_FOUND,
    ModelUnusable: HTTPStatus.SERVICE_UNAVAILABLE,
    ProtocolMismatch: HTTPStatus.BAD_REQUEST,
    ModelLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    TenantLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    ModelNotAllowed: HTTPStatus.FORBIDDEN,
    AuthenticationUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    NoEndpoint: HTTPStatus.SERVICE_UNAVAILABLE,
    UpstreamUnreachable: HTTPStatus.BAD_GATEWAY,
    UpstreamBroken: HTTPStatus.BAD_GATEWAY,
    UpstreamTimeout: HTTPStatus.GATEWAY_TIMEOUT,
}
_NOT_TAKEN = "CONNECT"
"""A method that Falcon knows and that no path takes: its responder raises 405 with Allow."""

_log = structlog.get_logger("router.problems")


class ErrorResponses:
    """Falcon's error handlers, with the form of errors of every route."""

    def __init__(
        self, router: CompiledRouter, adapters: Sequence[ProtocolAdapter], admin_port: str | None = None
    ) -> None:
        """`admin_port`: that of the admin listener, None without one."""
        self._router = router
        self._admin_port = admin_port
        self._below_roots = error_forms(adapters)
        self._of_template: dict[str, ErrorBody] = {}

    def install(self, app: "falcon.App[falcon.Request, falcon.Response]") -> None:
        """Handle every error that leaves a resource."""
        app.add_error_handler(Exception, self._unexpected)
        app.add_error_handler(falcon.HTTPError, self._http_error)
        app.add_error_handler(RouterError, self._router_error)

    def register(self, template: str, error_body: ErrorBody) -> None:
        """Give the errors of a route this form."""
        self._of_template[template] = error_body

    def _router_error(self, req: falcon.Request, resp: falcon.Response, error: RouterError, _: object) -> None:
        seconds = getattr(error, "retry_after", None)
        if seconds is not None:
            resp.set_header("Retry-After", str(seconds))
        if isinstance(error, UnsupportedBody):  # RFC 9110 section 15.5.16: what would have been accepted
            resp.set_headers({"Accept": error.accepts, "Accept-Encoding": "identity"})
        status = error.status if isinstance(error, UpstreamErrorResponse) else _STATUS.get(type(error))
        if status is None:
            self._unexpected(req, resp, error, None)  # none that a request should meet
        else:
            overload = getattr(error, "overload", None)
            self._respond(req, resp, status, error.code, str(error), overload)

    def _http_error(self, req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError, _: object) -> None:
        """Falcon's own: no such path, wrong method, a header that can't be read."""
        if req.method not in falcon.constants.COMBINED_METHODS:
            error = self._unknown_method(req, resp)
        status = HTTPStatus(error.status_code)
        if error.headers:
            resp.set_headers(error.headers)
        detail = error.description or _detail(req, status, self._admin_port)
        code = InvalidRequest.code if status is HTTPStatus.BAD_REQUEST else status.name.lower()
        self._respond(req, resp, status, code, detail)

    def _unknown_method(self, req: falcon.Request, resp: falcon.Response) -> falcon.HTTPError:
        """Falcon calls a method that HTTP doesn't know a bad request; to us it is one that no path takes."""
        route = self._router.find(req.path, req)
        if route is None:
            return falcon.HTTPRouteNotFound()
        _, responders, _, req.uri_template = route
        responder: Any = responders[_NOT_TAKEN]
        try:
            responder(req, resp)
        except falcon.HTTPMethodNotAllowed as error:
            return error
        raise AssertionError(f"{req.path} takes {_NOT_TAKEN}")

    def _unexpected(self, req: falcon.Request, resp: falcon.Response, error: Exception, _: object) -> None:
        request_id = req.env[ENVIRON_KEY].request_id
        _log.error("unexpected error", request_id=request_id, path=req.path, exc_info=error)
        detail = f"the router failed; its log has the reason under request id {request_id}"
        self._respond(req, resp, HTTPStatus.INTERNAL_SERVER_ERROR, RouterError.code, detail)

    def _respond(  # noqa: PLR0913, PLR0917  # an error, and where it belongs
        self,
        req: falcon.Request,
        resp: falcon.Response,
        status: int,
        code: str,
        detail: str,
        overload: Overload | None = None,
    ) -> None:
        exchange = req.env[ENVIRON_KEY]
        exchange.error = code
        if exchange.trace is not None:
            exchange.trace.failed(code)
        more = {} if overload is None else overload._asdict()
        resp.status = f"{status} {problem.phrase(status)}"
        resp.content_type, resp.data = self._error_body(req)(status, code, detail, more)

    def _error_body(self, req: falcon.Request) -> ErrorBody:
        if req.uri_template is None:
            return self._below_roots(req.path)
        return self._of_template.get(req.uri_template, problem.error_body)


def statuses() -> Mapping[type[RouterError], HTTPStatus]:
    """Returns the status of every error that a client may get."""
    return _STATUS


def _detail(req: falcon.Request, status: HTTPStatus, admin_port: str | None) -> str:
    if status is HTTPStatus.NOT_FOUND:
        if req.path.startswith("/admin/") and req.env["SERVER_PORT"] != admin_port:
            return f"nothing is served at {req.path} here; {NOT_HERE}"
        return f"nothing is served at {req.path}"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{req.path} does not take {req.method}; see Allow"
    return status.description
