"""The path of every inference request, whatever its protocol: parse, resolve the model, admit, route, relay."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import falcon
import gevent

from app.admission.limiter import Limiter
from app.api.body import read_body
from app.api.exchange import ENVIRON_KEY, Exchange
from app.api.health import check_draining
from app.config import route_schema
from app.errors import ProtocolMismatch
from app.http_fields import Headers
from app.native import monotonic
from app.protocols.adapters import served_elsewhere, speaks
from app.protocols.interfaces import ClientRequest, Operation, ProtocolAdapter, Reply
from app.protocols.problem import phrase
from app.routing import prefix_history
from app.routing.registry import ModelRegistry, RegisteredModel
from app.shared_memory.drain import Drain
from app.upstream.headers import to_upstream

PIN = "X-Model-Version"
"""The header by which a request asks for a version of its model."""
_LARGE_BODY_BYTES = 1 << 18
"""After a body over this length was read, which takes up to 20 ns a byte, other requests have a turn."""
_PREFIX_HASH_BYTES = 256
_PIN_KEY = "HTTP_" + PIN.upper().replace("-", "_")


class Dispatcher(NamedTuple):
    """Serves inference requests."""

    registry: ModelRegistry
    limiter: Limiter
    drain: Drain
    max_body_bytes: int
    queue_timeout_s: float
    trace_sample_ratio: float = 0.0

    def handle(
        self,
        adapter: ProtocolAdapter | None,
        operation: Operation,
        req: falcon.Request,
        resp: falcon.Response,
        /,
        **params: str,
    ) -> None:
        """Serve one request. Invalid input raises before a permit is taken.

        `adapter` is None for an operation that every model serves, whatever its protocol.
        """
        exchange: Exchange = req.env[ENVIRON_KEY]
        exchange.route = operation.route
        body = read_body(req, self.max_body_bytes) if operation.has_body else b""
        request = operation.parse(ClientRequest(operation, params, req.query_string, req.get_header, body))
        model = self.resolve(exchange, adapter, request.model)
        prompt = request.prompt()  # for every policy: it checks the body, and invalid input must not take a permit
        if len(body) > _LARGE_BODY_BYTES:
            gevent.sleep(0)
        key = _balancing_key(req, model.route, prompt)
        self.admit(exchange, model)
        began = monotonic()
        try:
            headers = partial(self._headers, req, exchange, model.route)
            reply = request.send(model.model, headers, key, request.version or req.env.get(_PIN_KEY, ""))
            exchange.hold(reply.close)
        finally:
            exchange.model_s = monotonic() - began
        _relay(reply, resp, exchange, began)

    def resolve(self, exchange: Exchange, adapter: ProtocolAdapter | None, name: str | None) -> RegisteredModel:
        """Returns the model of this name, under which the request is counted from now on.

        Raises ModelNotFound, or ProtocolMismatch for a model that does not speak the adapter's protocol.
        """
        model = self.registry.find(name)
        exchange.model = model.route.name
        if adapter is not None and not speaks(model.route.protocol, adapter):
            raise ProtocolMismatch(served_elsewhere(name or model.route.name, model.route.protocol))
        return model

    def admit(self, exchange: Exchange, model: RegisteredModel) -> None:
        """Take the permits. Raises Draining, a Rejected, or ClientGone."""
        check_draining(self.drain)
        exchange.admit(self.limiter, self.queue_timeout_s, model.limit)

    def _headers(self, req: falcon.Request, exchange: Exchange, route: route_schema.Model) -> Headers:
        """Returns the headers for the model server."""
        return to_upstream(
            req.env,
            exchange.request_id,
            credentials=route.forward_credentials,
            trace_sample_ratio=self.trace_sample_ratio,
        )


class OperationResource:
    """The operations at one path."""

    def __init__(
        self, dispatcher: Dispatcher, adapter: ProtocolAdapter | None, operations: Iterable[Operation]
    ) -> None:
        for operation in operations:
            setattr(self, f"on_{operation.method.lower()}", partial(dispatcher.handle, adapter, operation))


def _balancing_key(req: falcon.Request, route: route_schema.Model, prompt: Sequence[bytes | memoryview]) -> bytes:
    """Returns what the model's balancing policy keeps together."""
    if route.balancing == "prefix":
        return prefix_history.beginnings(prompt, route.prefix_bytes or prefix_history.DEFAULT_BYTES)
    if route.balancing == "prefix_hash":
        length = route.prefix_bytes or _PREFIX_HASH_BYTES
        return b",".join(part[:length] for part in prompt)[:length]
    if route.balancing == "session":
        header = req.get_header(route.session_header) if route.session_header else None
        cookies = req.get_cookie_values(route.session_cookie) if route.session_cookie and not header else None
        return (header or (cookies or [""])[0]).encode()
    return b""


def _relay(reply: Reply, resp: falcon.Response, exchange: Exchange, began: float) -> None:
    """Pass the model server's response on: at once if all of it is there, else as it comes."""
    resp.status = f"{reply.status} {phrase(reply.status)}"
    if isinstance(reply.body, tuple):
        resp.data = b"".join(reply.body)
    else:
        if reply.length is not None:
            resp.content_length = reply.length
        resp.stream = _timed(reply, exchange, began)
    exchange.reply_headers = reply.headers  # bypasses Falcon, which checks each again; last, as errors have none


def _timed(reply: Reply, exchange: Exchange, began: float) -> Iterator[bytes]:
    try:
        yield b""  # the head goes out now: the first piece may be long in coming
        yield from reply.body
    finally:
        exchange.model_s = monotonic() - began
