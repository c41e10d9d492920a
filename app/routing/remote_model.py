"""A model behind addresses: which version serves a request, which endpoint, and which other one when that fails.

A request is sent again only while nothing of an answer has been passed on and the failure is safe to repeat: there was
no connection, so nobody saw it; or it was answered with 429, 502 or 503 and the retry budget allows it. (A reused
connection that was closed unanswered is replaced by upstream/pool.py.) A time that ran out is not repeated: the model
server may still be working on it.
"""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from app.config import route_schema as routes
from app.errors import ModelNotFound, NoEndpoint, UpstreamBroken, UpstreamUnreachable
from app.observability.metrics import Metrics
from app.protocols import Call, Inference, Reply
from app.protocols.infer import output_of, upstream_call
from app.protocols.registered import adapter_of
from app.routing.endpoint_pool import Attempt, Version
from app.routing.policies import key_hash
from app.routing.retry_budget import RetryBudget

_MOST_OUTPUT_BYTES = 64 << 20
_ANSWERS_TO_REPEAT = {429: "status_429", 502: "status_502", 503: "status_503"}


class RemoteModel:
    """A `Model` served by the endpoints of its route."""

    def __init__(self, route: routes.Model, versions: Sequence[Version], budget: RetryBudget, metrics: Metrics) -> None:
        self.name = route.name
        self._route = route
        self._adapter = adapter_of(route.protocol)
        self._versions = versions
        self._budget = budget
        self._metrics = metrics

    def infer(self, request: Inference) -> Any:
        call = upstream_call(self._adapter, self.name, request)
        reply = self.relay(call)
        try:
            body = _whole(reply)
        finally:
            reply.close()
        return output_of(self._adapter, reply, body)

    def relay(self, call: Call) -> Reply:
        deadline = time.monotonic() + self._route.timeouts.total_s
        self._budget.deposit()
        versions = self._in_order(call)
        tried: list[int] = []
        attempt = _first(versions, call, tried)
        if attempt is None:
            raise self._no_endpoint(versions)
        while True:
            tried.append(attempt.endpoint.place)
            try:
                reply = attempt.send(call, deadline)
            except UpstreamUnreachable:
                other = _first(versions, call, tried)
                if other is None:
                    raise
                reason = "unreachable"
            else:
                if reply.status not in _ANSWERS_TO_REPEAT:
                    return reply
                other = self._within_budget(versions, call, tried)
                if other is None:
                    return reply
                reply.close()
                reason = _ANSWERS_TO_REPEAT[reply.status]
            self._metrics.retries_child[reason].inc()
            attempt = other

    def unusable(self, version: str = "") -> str | None:
        serving = self._versions if len(self._versions) == 1 or not version else self._pinned(version)
        up = (serves.shared.states.is_up(place) for serves in serving for place in serves.places)
        return None if any(up) else f"no endpoint of {self.name} is up"

    def _in_order(self, call: Call) -> Sequence[Version]:
        """The versions that may serve the call, the one to try first in front. Raises ModelNotFound."""
        versions = self._versions
        if len(versions) == 1:
            return versions  # whatever version was asked for, its own servers know
        if call.version:
            return self._pinned(call.version)
        # A session stays with its version as well as with its endpoint.
        sticky = call.key and self._route.balancing == "session"
        point = key_hash(call.key) / 2**64 if sticky else random.random()  # noqa: S311  # a share, not a secret
        return list(_by_weight([version for version in versions if version.weight], point))

    def _pinned(self, name: str) -> Sequence[Version]:
        pinned = [version for version in self._versions if version.name == name]
        if not pinned:
            names = ", ".join(version.name for version in self._versions)
            raise ModelNotFound(f"{self.name} has no version {name!r}; it has {names}")
        return pinned

    def _within_budget(self, versions: Sequence[Version], call: Call, tried: Sequence[int]) -> Attempt | None:
        other = _first(versions, call, tried)
        if other is not None and not self._budget.try_withdraw():
            other.give_up()
            return None
        return other

    def _no_endpoint(self, versions: Sequence[Version]) -> NoEndpoint:
        times = [seconds for version in versions if (seconds := version.retry_after()) is not None]
        reason = f"no endpoint of {self.name} takes requests now: each is unwell, ejected or asked for patience"
        return NoEndpoint(reason, min(times) if times else None)


def _first(versions: Sequence[Version], call: Call, tried: Sequence[int]) -> Attempt | None:
    for version in versions:
        attempt = version.choose(call.key, tried)
        if attempt is not None:
            return attempt
    return None


def _by_weight(versions: list[Version], point: float) -> Iterator[Version]:
    """The version at this point, 0 to 1, of the weights laid end to end; then the others, as fallback."""
    total = sum(version.weight for version in versions)
    reached = 0
    chosen = versions[-1]
    for version in versions:
        reached += version.weight
        if point * total < reached:
            chosen = version
            break
    yield chosen
    yield from (version for version in versions if version is not chosen)


def _whole(reply: Reply) -> bytes:
    pieces, length = [], 0
    for piece in reply.body:
        pieces.append(piece)
        length += len(piece)
        if length > _MOST_OUTPUT_BYTES:
            raise UpstreamBroken(f"the answer is longer than {_MOST_OUTPUT_BYTES} bytes; ask for it as a stream")
    return b"".join(pieces)
