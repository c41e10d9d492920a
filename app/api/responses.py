"""OpenAI's `/v1/responses`: later requests about a response go to the endpoint that created it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import falcon

from app.api import failover
from app.api.dispatch import PIN, Dispatcher
from app.api.exchange import ENVIRON_KEY
from app.http_fields import Headers
from app.protocols.calls import Attempts, Model, Reply
from app.protocols.interfaces import Operation, ParsedCall, ProtocolAdapter
from app.protocols.response_ids import ResponseIdReader
from app.routing.created_responses import Creator
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
    """Serve a request that creates a response.

    The endpoint that has the response before it is preferred: most model servers keep responses for themselves. That
    may be an endpoint of a fallback, which served when the model had failed.
    """
    call, size = dispatcher.read(operation, req, params)
    assert isinstance(call, ParsedCall)
    exchange = req.env[ENVIRON_KEY]
    model = named = dispatcher.resolve(exchange, adapter, call.model)
    responses = dispatcher.registry.responses
    before = responses.find(call.refers_to) if call.refers_to else None
    if before is not None:
        call.endpoint = before.endpoint
        if not failover.is_forbidden(req, req.get_header(PIN) or ""):
            model = _model_that_continues(dispatcher.registry, named, before)
            exchange.model = model.route.name
        if named.route.fallback:
            resp.set_header(failover.SERVED_BY, exchange.model)

    def note(response_id: str, endpoint: str) -> None:
        responses.note(response_id, exchange.model, endpoint)  # perhaps a fallback

    # Another model does not have the response before this one.
    falls_back = before is None and not operation.about_model
    dispatcher.serve(req, resp, _Noted(call, note), model, size, falls_back=falls_back)
    if named.route.fallback:
        exchange.reply_headers = failover.without_name(exchange.reply_headers)


def _model_that_continues(registry: ModelRegistry, named: RegisteredModel, before: Creator) -> RegisteredModel:
    """Returns the fallback that created the response before, as long as it has the endpoint; else the named model."""
    for model in registry.fallbacks(named.route):
        if name_hash(model.route.name) == before.model:
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
    """Serve a request about an earlier response. Raises ResponseNotFound."""
    call, size = dispatcher.read(operation, req, params)
    assert isinstance(call, ParsedCall)
    name, endpoint = dispatcher.registry.creator_of(call.refers_to)
    model = dispatcher.resolve(req.env[ENVIRON_KEY], adapter, name)
    model = replace(model, wait_rule=None)  # an endpoint that appears meanwhile does not have the response
    call.endpoint, call.pinned = endpoint, True
    dispatcher.serve(req, resp, call, model, size, counts=False, falls_back=False)
