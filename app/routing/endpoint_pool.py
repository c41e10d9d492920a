"""The endpoints of one version of a model, and the choice among them."""

from collections.abc import Sequence

from app.config import route_schema
from app.routing.attempt import Attempt
from app.routing.endpoint import Endpoint, SharedRouting, Target
from app.routing.policies import POLICIES, Choice
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, name_hash, now_ms

LAYOUT = Layout(arrays={"turns": MAX_IDS})
"""A count of the choices of every pool, under the id of its first endpoint."""

_TURNS = 1 << 32


class EndpointPool:
    """The endpoints of one version, in one worker."""

    def __init__(
        self,
        route: route_schema.Model,
        version: route_schema.Version,
        endpoints: Sequence[Endpoint],
        shared: SharedRouting,
    ) -> None:
        self.name = version.name
        self.weight = version.weight
        self._endpoints = endpoints
        self._shared = shared
        self._shared_ids = [endpoint.shared_id for endpoint in endpoints]
        self._hashes = [name_hash(endpoint.url) for endpoint in endpoints]
        self._policy = POLICIES[route.balancing]
        self._turn = shared.table.array("turns")[self._shared_ids[0] :]
        self._target = Target(
            route,
            version.upstream_model or route.name,
            version.upstream_version or (None if len(route.versions) == 1 else ""),
            self._shared_ids,
            shared,
        )

    def choose(self, key: bytes, tried: Sequence[int] = ()) -> Attempt | None:
        """Begin an attempt at the endpoint that the policy chooses, or return None if none is available.

        `tried` are the ids of the endpoints that this request has tried before.
        """
        counters, outliers = self._shared.counters, self._shared.outliers
        with self._shared.table.lock:
            # Reading the loads, choosing, and counting are one step: no other worker chooses in between. Counting is
            # one store into this worker's own row, so a worker that is killed here or later does not count any more.
            now = now_ms()
            available = [
                at for at, shared_id in enumerate(self._shared_ids)
                if shared_id not in tried and outliers.is_available(shared_id, now)
            ]  # fmt: skip
            if not available:
                return None
            if not tried:  # a request takes one turn, however often it is retried: else some endpoints would be skipped
                self._turn[0] = (self._turn[0] + 1) % _TURNS
            chosen = self._endpoints[available[0 if len(available) == 1 else self._preferred(available, key)]]
            counters.add(chosen.shared_id)
            trial = outliers.begin(chosen.shared_id, now)
        return Attempt(self._target, chosen, trial)

    def is_usable(self) -> bool:
        """Whether any endpoint is healthy and not ejected."""
        return any(self._shared.outliers.is_usable(shared_id) for shared_id in self._shared_ids)

    def retry_after(self) -> int | None:
        """Returns the seconds until the first endpoint is available, or None if health checks must decide that."""
        times = [at for one in self._shared_ids if (at := self._shared.outliers.available_at(one)) is not None]
        return max(1, -(-(min(times) - now_ms()) // 1000)) if times else None

    def _preferred(self, available: Sequence[int], key: bytes) -> int:
        """Returns which of these the policy chooses, as an index into them."""
        loads = [self._shared.counters.total(self._shared_ids[at]) for at in available]
        hashes = [self._hashes[at] for at in available]
        route = self._target.route
        return self._policy(Choice(hashes, loads, self._turn[0], key, route.load_bound, route.load_floor))
