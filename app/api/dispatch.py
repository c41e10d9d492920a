"""The steps that every inference takes, whatever its protocol: admitted, passed to the model, and answered."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import falcon

from app.admission.limiter import Limiter
from app.api.body import read_body
from app.api.error_forms import phrase
from app.api.exchange import ENVIRON_KEY, Exchange
from app.errors import Draining
from app.protocols import Call, Reply
from app.routing.registry import ModelRegistry, RegisteredModel
from app.shared_memory.drain import Drain
from app.upstream.headers import Headers, to_upstream

PIN = "X-Model-Version"
"""The header by which a request asks for a version of its model."""


class Dispatcher(NamedTuple):
    """What every endpoint for inference needs."""

    catalogue: ModelRegistry
    limiter: Limiter
    drain: Drain
    max_body_bytes: int
    queue_timeout_s: float

    def body(self, req: falcon.Request, route: str) -> bytes:
        """Enter the request's route in its account, and read its body."""
        exchange: Exchange = req.env[ENVIRON_KEY]
        exchange.route = route
        return read_body(req, self.max_body_bytes)

    def find(self, req: falcon.Request, name: str | None) -> RegisteredModel:
        """The model that serves the request; from here on it is counted as the model's. Raises ModelNotFound."""
        served = self.catalogue.find(name)
        req.env[ENVIRON_KEY].model = served.route.name
        return served

    def admit(self, req: falcon.Request, served: RegisteredModel) -> Exchange:
        """Take the permits, or raise Draining or a Rejected."""
        exchange: Exchange = req.env[ENVIRON_KEY]
        if self.drain.begun:
            raise Draining("the server is shutting down; send the request to another one")
        exchange.admit(self.limiter, self.queue_timeout_s, served.limit)
        return exchange

    def relay(self, req: falcon.Request, resp: falcon.Response, served: RegisteredModel, call: Call) -> None:
        """Admit the call, pass it on, and answer what comes back, as it comes."""
        exchange = self.admit(req, served)
        began = time.monotonic()
        try:
            reply = served.model.relay(call)
            exchange.hold(reply.close)
        finally:
            exchange.model_s = time.monotonic() - began
        resp.status = f"{reply.status} {phrase(reply.status)}"
        if isinstance(reply.body, tuple):
            resp.data = b"".join(reply.body)
        else:
            if reply.length is not None:
                resp.content_length = reply.length
            resp.stream = _timed(reply, exchange, began)
        exchange.reply_headers = reply.headers  # past Falcon, which would look at each again; last, as errors have none


def headers_for(req: falcon.Request, served: RegisteredModel) -> Headers:
    """The headers that go on to the model server."""
    request_id = req.env[ENVIRON_KEY].request_id
    return to_upstream(req.env, request_id, credentials=served.route.forward_credentials)


def key_for(req: falcon.Request, served: RegisteredModel, prompt: bytes) -> bytes:
    """What the model's balancing policy keeps together. `prompt` may be in any form that is always the same."""
    route = served.route
    if route.balancing == "prefix":
        return prompt[: route.prefix_bytes]
    if route.balancing == "session":
        header = req.get_header(route.session_header) if route.session_header else None
        cookies = req.get_cookie_values(route.session_cookie) if route.session_cookie and not header else None
        return (header or (cookies or [""])[0]).encode()
    return b""


def _timed(reply: Reply, exchange: Exchange, began: float) -> Iterator[bytes]:
    try:
        yield b""  # the head goes out now: the first piece may be long in coming
        yield from reply.body
    finally:
        exchange.model_s = time.monotonic() - began
