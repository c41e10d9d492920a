"""OpenAI's `/v1/responses`: later requests about a response go to the endpoint that created it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import falcon

from app.api.dispatch import Dispatcher
from app.api.exchange import ENVIRON_KEY
from app.http_fields import Headers
from app.protocols.calls import Attempts, Model, Reply
from app.protocols.interfaces import Operation, ParsedCall, ProtocolAdapter
from app.protocols.response_ids import ResponseIdReader


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

    The endpoint that has the response before it is preferred: most model servers keep responses for themselves.
    """
    call, size = dispatcher.read(operation, req, params)
    assert isinstance(call, ParsedCall)
    exchange = req.env[ENVIRON_KEY]
    model = dispatcher.resolve(exchange, adapter, call.model)
    responses = dispatcher.registry.responses
    before = responses.find(call.refers_to) if call.refers_to else None
    if before is not None:
        call.endpoint = before.endpoint

    def note(response_id: str, endpoint: str) -> None:
        responses.note(response_id, exchange.model, endpoint)  # perhaps a fallback

    # Another model does not have the response before this one.
    dispatcher.serve(req, resp, _Noted(call, note), model, size, falls_back=before is None)


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
    call.endpoint, call.pinned = endpoint, True
    dispatcher.serve(req, resp, call, model, size, counts=False, falls_back=False)
