"""Failover: when a model fails, another one serves the request (`fallback` of its route).

Only what has passed nothing on to the client yet can go to another model: a model that fails raises, or its error
response has not been passed on. The request keeps its permit of the cap. It leaves its place of the one model's own
limit when it has one of the other's (`Exchange.change_model`). The fallbacks of a fallback are not used.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from math import inf

import falcon

from app.api.exchange import Exchange
from app.config.fallback_reasons import FallbackReason
from app.errors import (
    ModelLimitReached,
    NoEndpoint,
    QueueTimeout,
    RouterError,
    UpstreamBroken,
    UpstreamErrorResponse,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.native import monotonic
from app.protocols.calls import Reply
from app.routing.registered_model import RegisteredModel

SERVED_BY = "X-Router-Model"
"""The header of a response that names the model that served the request, where its route has fallbacks."""
_SERVED_BY_LOWER = SERVED_BY.lower()
FORBIDDEN_BY = "X-Router-Fallback"
"""The header by which a request forbids them, with the value `none`."""

_ERRORS: dict[type[RouterError], FallbackReason] = {
    NoEndpoint: "no_endpoint",
    UpstreamUnreachable: "upstream_unreachable",
    UpstreamBroken: "upstream_broken",
    UpstreamTimeout: "upstream_timeout",
    QueueTimeout: "queue_timeout",
    ModelLimitReached: "model_limit_reached",
}


def is_forbidden(req: falcon.Request, version: str) -> bool:
    """Whether this request must not go to another model: it says so, or it asks for a version of this one."""
    return bool(version) or (req.get_header(FORBIDDEN_BY) or "").strip().lower() == "none"


def without_name(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns these headers of a model server, without the name that a router behind this one gave to its model."""
    return [header for header in headers if header[0] != _SERVED_BY_LOWER]


def serve(
    exchange: Exchange,
    models: Sequence[RegisteredModel],
    admit: Callable[[RegisteredModel], RegisteredModel],
    send: Callable[[RegisteredModel, float], Reply],
    renewed: Callable[[RegisteredModel], RegisteredModel] = lambda model: model,
) -> Reply:
    """Admit the request and send it to the first of these models, to the next one if that fails, and so on.

    `renewed` returns a model as it is when its turn comes: its endpoints may be others by then.

    All of it ends by `total_s` of the first model. Returns what the last model that was tried returned, or raises what
    it raised.
    """
    first = models[0].route
    deadline = inf
    ahead = list(models)
    model = ahead.pop(0)
    while True:
        reply: Reply | None = None
        try:
            if exchange.permit is None:
                model = admit(model)
                deadline = monotonic() + first.timeouts.total_s
            reply = send(model, deadline)
            reason = _reason_of_response(reply.status, reply.is_clients_fault)
            if not _goes_on(exchange, ahead, reason, first.fallback_on, deadline, renewed):
                return reply
            reply.close()
        except RouterError as error:
            if not _goes_on(exchange, ahead, _reason_of(error), first.fallback_on, deadline, renewed):
                raise
        model = ahead.pop(0)


def _goes_on(  # noqa: PLR0913, PLR0917  # what `serve` has of a request
    exchange: Exchange,
    ahead: list[RegisteredModel],
    reason: FallbackReason | None,
    reasons: Sequence[FallbackReason],
    deadline: float,
    renewed: Callable[[RegisteredModel], RegisteredModel],
) -> bool:
    """Whether another model gets the request: the first of `ahead` then, where it has a place already.

    Models whose own limit is reached are skipped.
    """
    if reason is None or reason not in reasons or monotonic() >= deadline:
        return False
    while ahead:
        ahead[0] = renewed(ahead[0])
        before, following = exchange.model, ahead[0]
        try:
            exchange.change_model(following.route.name, following.limit, following.traffic)
        except ModelLimitReached:
            exchange.full_fallbacks += 1
            if following.traffic is not None:
                following.traffic.count_rejected()
            ahead.pop(0)
            continue
        exchange.fallbacks = (*exchange.fallbacks, (before, following.route.name, reason))
        return True
    return False


def _reason_of_response(status: int, is_clients_fault: bool) -> FallbackReason | None:
    if is_clients_fault:
        return None
    return "status_429" if status == HTTPStatus.TOO_MANY_REQUESTS else "status_5xx" if status >= 500 else None


def _reason_of(error: RouterError) -> FallbackReason | None:
    if isinstance(error, UpstreamErrorResponse):  # what the response to /infer says of the model server's
        return _reason_of_response(error.status, error.is_clients_fault)
    return _ERRORS.get(type(error))
