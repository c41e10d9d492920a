"""OpenAI's `/v1/responses`: later requests about a response go to the endpoint that created it.

A response belongs to the tenant whose request created it. To others it is one that is not known.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import falcon

from app.api import failover
from app.api.dispatch import PIN, Dispatcher
from app.api.exchange import ENVIRON_KEY, Exchange
from app.errors import ModelNotAllowed
from app.http_fields import Headers
from app.protocols.calls import Attempts, Model, Reply
from app.protocols.interfaces import Operation, ParsedCall, ProtocolAdapter
from app.protocols.response_ids import ResponseIdReader
from app.routing.created_responses import Creator, response_not_found
from app.routing.registered_model import RegisteredModel
from app.routing.registry import ModelRegistry
from app.shared_memory.table import name_hash


class _Noted(NamedTuple):
    """A `ParsedRequest` whose response has an id, of which note is taken."""

    call: ParsedCall
    note: Callable[[str, str], None]
    """Takes the id and the URL of the endpoint."""

    @property
    def model(self) -> str | None:
        return self.call.model

    @property
    def version(self) -> str:
        return self.call.version

    def prompt(self) -> Sequence[bytes | memoryview]:
        return self.call.prompt()

    def send(self, model: Model, headers: Callable[[], Headers], key: bytes, version: str, attempts: Attempts) -> Reply:
        reply = self.call.send(model, headers, key, version, attempts)
        if reply.status < 300:
            pieces = self._noting(reply)
            # What is whole stays a tuple, which is sent at once.
            reply = Reply(
                reply.status,
                reply.headers,
                reply.length,
                tuple(pieces) if isinstance(reply.body, tuple) else pieces,
                reply.close,
                reply.endpoint,
                reply.is_clients_fault,
                reply.expect_end,
            )
        return reply

    def _noting(self, reply: Reply) -> Iterator[bytes]:
        """Yields the pieces of the body. The id is noted before the client can know it, and nothing is held back."""
        reader = ResponseIdReader(reply.headers)
        pieces: Iterable[bytes] = reply.body
        for piece in pieces:
            response_id = reader.feed(piece)
            if response_id:
                self.note(response_id, reply.endpoint)
            yield piece


def create(
    dispatcher: Dispatcher,
    adapter: ProtocolAdapter,
    operation: Operation,
    req: falcon.Request,
    resp: falcon.Response,
    /,
    **params: str,
) -> None:
    """Serve a request that creates a response. Raises ResponseNotFound if it is to follow another tenant's.

    The endpoint that has the response before it is preferred: most model servers keep responses for themselves. That
    may be an endpoint of a fallback, which served when the model had failed.
    """
    call, size = dispatcher.read(operation, req, params)
    assert isinstance(call, ParsedCall)
    exchange = req.env[ENVIRON_KEY]
    model = named = dispatcher.resolve(exchange, adapter, call.model)
    responses = dispatcher.registry.responses
    before = responses.find(call.refers_to) if call.refers_to else None
    tenant = _tenant(exchange)
    if before is not None:
        if before.tenant != name_hash(tenant):  # the endpoint would show what was said before
            raise response_not_found(call.refers_to)
        call.endpoint = before.endpoint
        if not failover.is_forbidden(req, req.get_header(PIN) or ""):
            model = _model_that_continues(dispatcher.registry, exchange, named, before)
            exchange.model = model.route.name
        if named.route.fallback:
            resp.set_header(failover.SERVED_BY, exchange.model)

    def note(response_id: str, endpoint: str) -> None:
        responses.note(response_id, exchange.model, endpoint, tenant)  # the model is perhaps a fallback

    # Another model does not have the response before this one.
    falls_back = before is None and not operation.about_model
    dispatcher.serve(req, resp, _Noted(call, note), model, size, falls_back=falls_back)
    if named.route.fallback:
        exchange.reply_headers = failover.without_name(exchange.reply_headers)


def _tenant(exchange: Exchange) -> str:
    """Returns the tenant of the request, "" without authentication."""
    return "" if exchange.caller is None else exchange.caller.tenant


def _model_that_continues(
    registry: ModelRegistry, exchange: Exchange, named: RegisteredModel, before: Creator
) -> RegisteredModel:
    """Returns the fallback that created the response before, as long as it has the endpoint; else the named model.

    It is also the named model if the caller may not use the fallback: another key of their tenant may.
    """
    for model in registry.fallbacks(named.route):
        if name_hash(model.route.name) == before.model:
            if exchange.caller is not None and not exchange.caller.may_use(model.route):
                return named
            urls = (endpoint.url for version in model.route.versions for endpoint in version.endpoints)
            return model if any(name_hash(url) == before.endpoint for url in urls) else named
    return named


def refer(
    dispatcher: Dispatcher,
    adapter: ProtocolAdapter,
    operation: Operation,
    req: falcon.Request,
    resp: falcon.Response,
    /,
    **params: str,
) -> None:
    """Serve a request about an earlier response. Raises ResponseNotFound, or ModelNotAllowed, which names no model."""
    call, size = dispatcher.read(operation, req, params)
    assert isinstance(call, ParsedCall)
    exchange = req.env[ENVIRON_KEY]
    name, endpoint = dispatcher.registry.creator_of(call.refers_to, _tenant(exchange))
    try:
        model = dispatcher.resolve(exchange, adapter, name)
    except ModelNotAllowed:
        raise ModelNotAllowed("this credential is not for the model of that response") from None
    model = replace(model, wait_rule=None)  # an endpoint that appears meanwhile does not have the response
    call.endpoint, call.pinned = endpoint, True
    dispatcher.serve(req, resp, call, model, size, counts=False, falls_back=False)
