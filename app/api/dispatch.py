"""The path of every inference request, whatever its protocol: parse, resolve the model, admit, route, relay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import falcon
import gevent

from app.admission.limiter import Limiter
from app.api import failover
from app.api.balancing_key import balancing_key
from app.api.body import read_body
from app.api.exchange import ENVIRON_KEY, Exchange
from app.api.health import check_draining
from app.api.relay import relay
from app.config import route_schema
from app.errors import ModelNotAllowed, ModelNotFound, NoEndpoint, ProtocolMismatch
from app.http_fields import Headers
from app.native import monotonic
from app.observability.token_metrics import TokenMetrics
from app.protocols.adapters import served_elsewhere, speaks
from app.protocols.calls import Reply
from app.protocols.interfaces import ClientRequest, Operation, ParsedRequest, ProtocolAdapter
from app.routing.endpoint_wait import EndpointWait, lacks_endpoints
from app.routing.registered_model import RegisteredModel
from app.routing.registry import ModelRegistry
from app.shared_memory.drain import Drain
from app.upstream.headers import to_upstream

if TYPE_CHECKING:
    from app.observability.otel import Tracing

PIN = "X-Model-Version"
"""The header by which a request asks for a version of its model."""
_LARGE_BODY_BYTES = 1 << 18
"""After a body over this length was read, which takes up to 20 ns a byte, other requests have a turn."""
_PIN_KEY = "HTTP_" + PIN.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)  # attributes are looked up faster than those of a NamedTuple
class Dispatcher:
    """Serves inference requests."""

    registry: ModelRegistry
    limiter: Limiter
    drain: Drain
    max_body_bytes: int
    queue_timeout_s: float
    trace_sample_ratio: float = 0.0
    token_metrics: TokenMetrics | None = None
    """Counts tokens; without it, none are counted."""
    tracing: "Tracing | None" = None
    endpoint_wait: EndpointWait | None = None
    """Without it, no request waits for an endpoint."""
    max_upload_bytes: int = 1 << 30

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
        request, size = self.read(operation, req, params)
        model = self.resolve(req.env[ENVIRON_KEY], adapter, request.model)
        if operation.only_listed and operation.route not in model.route.paths:
            raise falcon.HTTPNotFound(description=f"nothing is served at {operation.route} for {model.route.name}")
        # /infer, which has no adapter, counts for itself; what has no body repeats an earlier response.
        counts = adapter is not None and operation.has_body
        # What is said about one model would be wrong of another one.
        falls_back = operation.has_body and not operation.about_model
        if operation.only_listed:
            falls_back = all(operation.route in other.route.paths for other in self.registry.fallbacks(model.route))
        self.serve(req, resp, request, model, size, counts=counts, falls_back=falls_back)

    def begin(self, operation: Operation, req: falcon.Request) -> Exchange:
        """Returns the exchange of a request, which is from now on one of this operation."""
        exchange: Exchange = req.env[ENVIRON_KEY]
        exchange.route = operation.route
        if self.tracing is not None:
            exchange.trace = self.tracing.begin(req.env, operation.route, exchange.started)
        return exchange

    def read(self, operation: Operation, req: falcon.Request, params: Mapping[str, str]) -> tuple[ParsedRequest, int]:
        """Returns the parsed request, and the size of its body. Raises what is wrong with it."""
        self.begin(operation, req)
        body = read_body(req, self.max_body_bytes) if operation.has_body else b""
        return operation.parse(ClientRequest(operation, params, req.query_string, req.get_header, body)), len(body)

    def serve(  # noqa: PLR0913  # what a request is, and what holds for its operation
        self,
        req: falcon.Request,
        resp: falcon.Response,
        request: ParsedRequest,
        model: RegisteredModel,
        size: int,
        *,
        counts: bool = True,
        falls_back: bool = True,
    ) -> None:
        """Serve a request that was read, for this model. `size` is that of its body, as far as it was read.

        `counts`: whether the tokens of the response are counted. `falls_back`: whether another model may serve it.
        """
        exchange: Exchange = req.env[ENVIRON_KEY]
        prompt = request.prompt()  # for every policy: it checks the body, and invalid input must not take a permit
        if size > _LARGE_BODY_BYTES:
            gevent.sleep(0)
        version = request.version or req.env.get(_PIN_KEY, "")
        began = monotonic()
        try:
            if falls_back and model.route.fallback:
                send = partial(self._send, req, exchange, request, prompt, version)
                reply = self._fail_over(req, resp, exchange, model, version, send)
            else:
                model = self.admit(exchange, model, version)
                reply = self._send(req, exchange, request, prompt, version, model)
            exchange.hold(reply.close)
        finally:
            began += exchange.queue_s
            if exchange.permit is not None:
                exchange.model_s = monotonic() - began
        relay(reply, resp, exchange, began, self.token_metrics if counts else None)

    def _send(  # noqa: PLR0913, PLR0917  # `handle` binds what belongs to the request
        self,
        req: falcon.Request,
        exchange: Exchange,
        request: ParsedRequest,
        prompt: Sequence[bytes | memoryview],
        version: str,
        model: RegisteredModel,
        deadline: float = inf,
    ) -> Reply:
        """Send the request to the model, in the way of its route.

        Another process may publish routes after the last look at them, and a pool chooses no endpoint that newer routes
        lack. If they lack all of its endpoints, the request was sent nowhere, and the model is looked up again.
        """
        while True:
            key = balancing_key(req, model.route, prompt)
            headers = partial(self._headers, req, exchange, model.route)
            target = model.model
            if exchange.trace is not None or deadline != inf:
                target = target.under(deadline, exchange.trace)
            try:
                return request.send(target, headers, key, version, exchange.attempts)
            except NoEndpoint:
                newer = self.registry.renewed(model)
                if newer is model:
                    raise
                model = newer

    def _fail_over(  # noqa: PLR0913, PLR0917  # see `_send`
        self,
        req: falcon.Request,
        resp: falcon.Response,
        exchange: Exchange,
        model: RegisteredModel,
        version: str,
        send: Callable[..., Reply],
    ) -> Reply:
        """Send the request to the model, or to one of its fallbacks. The response says which one it was."""
        forbidden = failover.is_forbidden(req, version)
        models = [model] if forbidden else [model, *self.registry.fallbacks(model.route)]
        if exchange.caller is not None:
            models = [one for one in models if exchange.caller.may_use(one.route)]
        try:
            reply = failover.serve(
                exchange, models, partial(self.admit, exchange, version=version), send, self.registry.renewed
            )
        finally:
            resp.set_header(failover.SERVED_BY, exchange.model)
        reply.headers[:] = failover.without_name(reply.headers)
        return reply

    def resolve(self, exchange: Exchange, adapter: ProtocolAdapter | None, name: str | None) -> RegisteredModel:
        """Returns the model of this name, under which the request is counted from now on.

        Raises ModelNotFound, ModelNotAllowed, or ProtocolMismatch for a model that does not speak the adapter's
        protocol.
        """
        model = self.registry.find(name) if exchange.caller is None else self.find(exchange, name)
        exchange.model = model.route.name
        exchange.adapter = adapter
        if adapter is not None and not speaks(model.route.protocol, adapter):
            raise ProtocolMismatch(served_elsewhere(name or model.route.name, model.route.protocol))
        return model

    def find(self, exchange: Exchange, name: str | None) -> RegisteredModel:
        """Returns the model of this name. Raises ModelNotFound, or ModelNotAllowed if the caller may not use it.

        No error tells a caller of models which they may not use.
        """
        caller = exchange.caller
        if caller is None:
            return self.registry.find(name)
        try:
            model = self.registry.find(name)
        except ModelNotFound:
            if not caller.models:
                raise
            raise ModelNotFound(f"there is no model {str(name)[:100]!r} that this credential is for") from None
        if not caller.may_use(model.route):
            named = "default model" if name is None else f"model {name[:100]!r}"
            raise ModelNotAllowed(f"this credential is not for the {named}")
        return model

    def usable(self, exchange: Exchange) -> Iterator[tuple[str, RegisteredModel]]:
        """Yields name or alias of each model that the caller may use, and the model."""
        for name in self.registry.names():
            model = self.registry.find(name)
            if exchange.caller is None or exchange.caller.may_use(model.route):
                yield name, model

    def admit(self, exchange: Exchange, model: RegisteredModel, version: str = "") -> RegisteredModel:
        """Take the permits, after the wait for an endpoint if the model has none.

        Returns the model as it is by then: the endpoints that it had before may have gone while the request waited.
        Raises Draining, a Rejected, NoEndpoint, ClientGone, or what `resolve` raises: the routes may change meanwhile.
        """
        check_draining(self.drain)
        if model.wait_rule is not None and self.endpoint_wait is not None:
            return self._admit_with_endpoint(exchange, model, version, self.endpoint_wait)
        exchange.admit(self.limiter, self.queue_timeout_s, model.limit, model.traffic)
        return self.registry.renewed(model)

    def _admit_with_endpoint(
        self, exchange: Exchange, model: RegisteredModel, version: str, wait: EndpointWait
    ) -> RegisteredModel:
        resolve = partial(self.resolve, exchange, exchange.adapter, model.route.name)
        deadline = monotonic() + model.route.no_endpoint_wait_s
        model = self.registry.renewed(model)
        while True:
            if lacks_endpoints(model, version):
                exchange.withdraw()  # a request that waits for an endpoint holds no place
                model = exchange.wait_for(wait.until_endpoint, resolve, version, deadline)
            exchange.admit(self.limiter, self.queue_timeout_s, model.limit, model.traffic)
            # One look decides whether to return and, if not, to give the permit back first. Between two looks another
            # process might publish an endpoint, and a second permit would be taken beside the first one.
            model = self.registry.renewed(model)
            if not lacks_endpoints(model, version):
                return model  # else the last endpoint has gone while the request was in the queue

    def _headers(self, req: falcon.Request, exchange: Exchange, route: route_schema.Model) -> Headers:
        """Returns the headers for the model server."""
        return to_upstream(
            req.env,
            exchange.request_id,
            credentials=route.forward_credentials,
            trace_sample_ratio=self.trace_sample_ratio,
        )
