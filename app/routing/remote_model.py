"""A model behind endpoints: which version serves a request, which endpoint, and which other one when that fails.

A request is sent again only while nothing of a response has been passed on, and only after a failure that is safe to
repeat: there was no connection, so no endpoint saw the request; or the response was 429, 502 or 503 and the retry
budget allows it. A request that timed out is not repeated: the model server may still be working on it. Nor is one of
which a part was sent that the router has not kept, or that is about a response which only one endpoint has.
(upstream/pool.py repeats a request on a reused connection that was closed before the request came, within the same
budget.)
"""

import random
from collections.abc import Iterator, Sequence
from copy import copy
from math import inf

from msgspec import Raw

from app.config import route_schema
from app.errors import ModelNotFound, NoEndpoint, ResponseNotFound, UpstreamBroken, UpstreamUnreachable
from app.native import monotonic
from app.observability.metrics import Metrics
from app.protocols.adapters import adapter_of
from app.protocols.calls import Call, Inference, Reply, RequestTrace
from app.protocols.infer import output_of, upstream_call
from app.protocols.token_usage import usage_at_end
from app.routing.attempt import Attempt
from app.routing.candidates import Reach
from app.routing.endpoint_pool import EndpointPool
from app.routing.outlier_detection import Outcome
from app.routing.policies import key_hash
from app.routing.retry_budget import RetryBudget
from app.shared_memory.table import name_hash

_MAX_OUTPUT_BYTES = 64 << 20
_FIRST = ((Reach.HEALTHY, Reach.BACKING_OFF), (Reach.PANIC, Reach.ANY))
_AFTER_UNREACHABLE = (Reach.HEALTHY, Reach.PANIC, Reach.ANY)
_AFTER_RESPONSE = (Reach.HEALTHY, Reach.PANIC)  # the client has a response: one that is refused again is no better
_RETRIED_STATUSES = {429: "status_429", 502: "status_502", 503: "status_503"}
_NO_CREDENTIAL = "this worker could not read the credential of any; its log has the reason"


class RemoteModel:
    """A `Model` that the endpoints of its route serve."""

    def __init__(  # noqa: PLR0913, PLR0917  # what a model consists of
        self,
        route: route_schema.Model,
        pools: Sequence[EndpointPool],
        budget: RetryBudget,
        metrics: Metrics,
        scaled_to_zero: bool = False,
        left_out: int = 0,
    ) -> None:
        """`scaled_to_zero`: it is known that the model may have no endpoint, and requests wait for one.

        `left_out`: so many endpoints are in no pool, because this worker does not have their credential.
        """
        self.name = route.name
        self._route = route
        self._adapter = adapter_of(route.protocol)
        self._pools = pools
        self._budget = budget
        self._metrics = metrics
        self._deadline = inf
        self._trace: RequestTrace | None = None
        self._scaled_to_zero = scaled_to_zero and not left_out
        self._left_out = left_out

    def under(self, deadline: float, trace: RequestTrace | None) -> "RemoteModel":
        """See `Model`."""
        model = copy(self)
        model._deadline, model._trace = deadline, trace
        return model

    def infer(self, request: Inference) -> Raw:
        """See `Model`."""
        reply = self.relay(upstream_call(self._adapter, self.name, request))
        try:
            body = _whole(reply)
        finally:
            reply.close()
        if reply.status < 300:
            usage = usage_at_end(body)
            self._metrics.token_metrics.count(self.name, usage)
            if self._trace is not None:
                self._trace.generated(usage.input, usage.output, None)
        return output_of(self._adapter, reply, body)

    def relay(self, call: Call) -> Reply:
        """See `Model`."""
        deadline = min(monotonic() + self._route.timeouts.total_s, self._deadline)
        self._budget.deposit()
        pools = self._in_order(call)
        tried: list[int] = []
        attempt = self._begin_at_endpoint(pools, call) if call.endpoint else _begin_first_attempt(pools, call)
        if attempt is None:
            call.attempts.append(pools[0].no_attempt())
            raise self._no_endpoint(pools)
        while True:
            call.attempts.append(attempt)
            tried.append(attempt.endpoint.shared_id)
            if self._trace is not None:
                attempt.trace = self._trace.attempt(self.name, attempt.endpoint.url, call)
            try:
                reply = attempt.send(call, deadline)
            except UpstreamUnreachable:
                other = None if call.pinned else _begin_other_attempt(pools, call, tried, _AFTER_UNREACHABLE)
                if other is None:
                    raise
                reason = "unreachable"
            else:
                if (
                    reply.status not in _RETRIED_STATUSES
                    or attempt.is_clients_fault
                    or _must_not_be_repeated(call, attempt)
                ):
                    return reply
                other = self._begin_retry(pools, call, tried)
                if other is None:
                    return reply
                reply.close()
                reason = _RETRIED_STATUSES[reply.status]
            self._metrics.retries[reason].inc()
            attempt = other

    def begin(self, call: Call) -> Attempt | None:
        """Begin the first attempt of a call that prefers no endpoint, as `relay` does. The caller must finish it."""
        return _begin_first_attempt(self._in_order(call), call)

    def unusable(self, version: str = "") -> str | None:
        """See `Model`."""
        pools = self._pools if len(self._pools) == 1 or not version else self._pinned(version)
        if any(pool.is_usable() for pool in pools) or (self._scaled_to_zero and not any(pool.size for pool in pools)):
            return None
        if not any(pool.size for pool in pools):
            found = f"no endpoint of {self.name} has been found"
            return f"{self.name} has no endpoint: {_NO_CREDENTIAL}" if self._left_out else found
        unknown = "" if any(pool.is_known() for pool in pools) else ": none has been reached yet"
        return f"no endpoint of {self.name} is up{unknown}"

    def lacks_endpoints(self, version: str) -> bool:
        """Whether a request that pins this version, or none (""), has no endpoint at all: discovery has found none."""
        pools = () if self._left_out else self._pools
        if len(pools) > 1:
            pools = [pool for pool in pools if (pool.name == version if version else pool.weight)]
        return bool(pools) and not any(pool.size for pool in pools)

    def _in_order(self, call: Call) -> Sequence[EndpointPool]:
        """Returns the versions that may serve the call, the one to try first in front. Raises ModelNotFound."""
        pools = self._pools
        if len(pools) == 1:
            return pools  # its endpoints judge whichever version the request names
        if call.version:
            return self._pinned(call.version)
        # A session stays with its version as well as with its endpoint.
        sticky = call.key and self._route.balancing == "session"
        point = key_hash(call.key) / 2**64 if sticky else random.random()  # noqa: S311  # a share, not a secret
        return list(_by_weight([pool for pool in pools if pool.weight], point))

    def _pinned(self, version: str) -> Sequence[EndpointPool]:
        pinned = [pool for pool in self._pools if pool.name == version]
        if not pinned:
            names = ", ".join(pool.name for pool in self._pools)
            raise ModelNotFound(f"{self.name} has no version {version!r}; it has {names}")
        return pinned

    def _begin_at_endpoint(self, pools: Sequence[EndpointPool], call: Call) -> Attempt | None:
        """Begin the first attempt of a request at the endpoint that it prefers or is pinned to.

        Raises ResponseNotFound or NoEndpoint if it is pinned to one that is gone, or ejected.
        """
        pool = next((pool for pool in (pools if call.version else self._pools) if pool.has(call.endpoint)), None)
        attempt = None if pool is None else pool.begin_at(call.endpoint, call.pinned)
        if attempt is not None:
            return attempt
        if not call.pinned:
            return _begin_first_attempt(pools, call)
        if pool is None:
            raise ResponseNotFound(f"the endpoint of {self.name} that created the response is not served any more")
        reason = f"the endpoint of {self.name} that created the response takes no requests now: it is ejected"
        raise NoEndpoint(reason, pool.retry_after(call.endpoint))

    def _begin_retry(self, pools: Sequence[EndpointPool], call: Call, tried: Sequence[int]) -> Attempt | None:
        """Begin another attempt if an endpoint is available and the budget allows it."""
        other = _begin_other_attempt(pools, call, tried, _AFTER_RESPONSE)
        if other is not None and not self._budget.try_withdraw():
            other.finish(Outcome.ABANDONED, None)
            return None
        return other

    def _no_endpoint(self, pools: Sequence[EndpointPool]) -> NoEndpoint:
        times = [seconds for pool in pools if (seconds := pool.retry_after()) is not None]
        reason = f"no endpoint of {self.name} takes requests now: each is unhealthy, ejected or draining"
        if not any(pool.size for pool in pools):
            why = _NO_CREDENTIAL if self._left_out else "discovery has found none"
            reason = f"{self.name} has no endpoint: {why}"
        return NoEndpoint(reason, min(times) if times else None)


def _begin_first_attempt(pools: Sequence[EndpointPool], call: Call) -> Attempt | None:
    """Begin the first attempt of a request.

    Another version is used only if the first one has no healthy endpoint. That its endpoints back off is no reason:
    all requests to a large share would go to a small one, whenever the large one is full for a moment.
    """
    for reaches in _FIRST:
        for pool in pools:
            for reach in reaches:
                attempt = pool.choose(call.key, reach=reach)
                if attempt is not None:
                    return attempt
    return None


def _begin_other_attempt(
    pools: Sequence[EndpointPool], call: Call, tried: Sequence[int], reaches: Sequence[Reach]
) -> Attempt | None:
    """Begin an attempt at an endpoint that was not tried before, of any version."""
    for reach in reaches:
        for pool in pools:
            attempt = pool.choose(call.key, tried, reach)
            if attempt is not None:
                return attempt
    return None


def _must_not_be_repeated(call: Call, attempt: Attempt) -> bool:
    """Whether the first response to a call is the client's, whatever it says.

    A part of the body was taken that can't be sent again; or another endpoint would only say that it does not have the
    earlier response that the call refers to, where the client should learn that this one has no room now.
    """
    has_response = call.endpoint != 0 and name_hash(attempt.endpoint.url) == call.endpoint
    return call.pinned or has_response or (call.rest is not None and call.rest.begun)


def _by_weight(pools: list[EndpointPool], point: float) -> Iterator[EndpointPool]:
    """Yields the version at this point, 0 to 1, of the weights laid end to end; then the others, as fallback."""
    total = sum(pool.weight for pool in pools)
    reached = 0
    chosen = pools[-1]
    for pool in pools:
        reached += pool.weight
        if point * total < reached:
            chosen = pool
            break
    yield chosen
    yield from (pool for pool in pools if pool is not chosen)


def _whole(reply: Reply) -> bytes:
    pieces, length = [], 0
    for piece in reply.body:
        pieces.append(piece)
        length += len(piece)
        if length > _MAX_OUTPUT_BYTES:
            raise UpstreamBroken(f"the response is longer than {_MAX_OUTPUT_BYTES} bytes; request it as a stream")
    return b"".join(pieces)
