"""The endpoints of one version of a model, and the choice among them.

A request goes to an endpoint that is healthy, not ejected, and not backing off. Only an ejection keeps it away in any
case; the other two give way where nothing else is left (`Reach`).
"""

from collections.abc import Sequence
from enum import IntFlag

from app.config import route_schema
from app.routing.attempt import Attempt
from app.routing.endpoint import Endpoint, SharedRouting, Target
from app.routing.outlier_detection import PoolRules
from app.routing.policies import POLICIES, Choice
from app.routing.retry_budget import RetryBudget
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, name_hash, now_ms

LAYOUT = Layout(arrays={"turns": MAX_IDS})
"""A count of the choices of every pool, under the id of its first endpoint."""

_TURNS = 1 << 32


class Reach(IntFlag):
    """Which endpoints may be chosen beside those that are healthy and not backing off.

    If the pool is in panic and has a healthy endpoint, all count as healthy.
    """

    HEALTHY = 0
    """None."""
    BACKING_OFF = 1
    """If there is no other, the one whose back-off ends first."""
    PANIC = 2
    """All, if the pool is in panic, also if it has no healthy one."""
    ANY = 3
    """Both."""


class EndpointPool:
    """The endpoints of one version, in one worker."""

    def __init__(
        self,
        route: route_schema.Model,
        version: route_schema.Version,
        endpoints: Sequence[Endpoint],
        budget: RetryBudget,
        shared: SharedRouting,
    ) -> None:
        self.name = version.name
        self.weight = version.weight
        self._endpoints = endpoints
        self._shared = shared
        self._shared_ids = [endpoint.shared_id for endpoint in endpoints]
        self._back_offs = [endpoint.back_off for endpoint in endpoints]
        self._panic_threshold = route.health_check.panic_threshold
        self._hashes = [name_hash(endpoint.url) for endpoint in endpoints]
        self._policy = POLICIES[route.balancing]
        self._turn = shared.table.array("turns")[self._shared_ids[0] :]
        self._target = Target(
            route,
            version.upstream_model or route.name,
            version.upstream_version or (None if len(route.versions) == 1 else ""),
            PoolRules(self._shared_ids, route.ejection, self._panic_threshold),
            budget,
            shared,
        )

    def choose(self, key: bytes, tried: Sequence[int] = (), reach: Reach = Reach.HEALTHY) -> Attempt | None:
        """Begin an attempt at the endpoint that the policy chooses, or return None if none is available.

        `tried` are the ids of the endpoints that this request has tried before.
        """
        counters, is_available = self._shared.counters, self._shared.health.is_available
        until_ms, back_offs = self._shared.back_offs.until_ms, self._back_offs
        with self._shared.table.lock:
            # Reading the loads, choosing, and counting are one step: no other worker chooses in between. Counting is
            # one store into this worker's own row, so a worker that is killed here or later does not count any more.
            now = now_ms()
            available = [
                at for at, shared_id in enumerate(self._shared_ids)
                if shared_id not in tried and is_available(shared_id, now) and until_ms[back_offs[at]] <= now
            ]  # fmt: skip
            if len(available) < len(self._shared_ids):
                available = self._widened(available, tried, reach, now)
            if not available:
                return None
            if not tried:  # a request takes one turn, however often it is retried: else some endpoints would be skipped
                self._turn[0] = (self._turn[0] + 1) % _TURNS
            chosen = self._endpoints[available[0 if len(available) == 1 else self._preferred(available, key)]]
            counters.add(chosen.shared_id)
            trial = self._shared.outliers.begin(chosen.shared_id, now)
        return Attempt(self._target, chosen, trial)

    def is_usable(self) -> bool:
        """Whether requests can be served: an endpoint is up, or in panic one seems to serve all the same."""
        health = self._shared.health
        if any(health.is_up(shared_id) for shared_id in self._shared_ids):
            return True
        now = now_ms()
        return self._panics(now) and any(
            health.seems_to_serve(shared_id) and not health.is_ejected(shared_id, now) for shared_id in self._shared_ids
        )

    def is_known(self) -> bool:
        """Whether anything is known of any endpoint, good or bad."""
        return any(self._shared.health.is_known(shared_id) for shared_id in self._shared_ids)

    def retry_after(self) -> int | None:
        """Returns the seconds until the first ejection ends, or None if health checks must decide."""
        health, now = self._shared.health, now_ms()
        panic = self._panics(now)
        times = [
            until for one in self._shared_ids
            if (until := health.unavailable_until(one)) > now and (panic or not health.is_unhealthy(one))
        ]  # fmt: skip
        return max(1, -(-(min(times) - now) // 1000)) if times else None

    def _widened(self, available: list[int], tried: Sequence[int], reach: Reach, now: int) -> list[int]:
        """Returns which endpoints may be chosen, as indices, where not all are simply available."""
        health, until_ms, back_offs = self._shared.health, self._shared.back_offs.until_ms, self._back_offs
        if not self._panics(now):
            if available or not reach & Reach.BACKING_OFF:
                return available
            left = [
                at for at, shared_id in enumerate(self._shared_ids)
                if shared_id not in tried and health.is_available(shared_id, now)
            ]  # fmt: skip
        else:
            left = [
                at for at, shared_id in enumerate(self._shared_ids)
                if shared_id not in tried and not health.is_ejected(shared_id, now)
            ]  # fmt: skip
            if not reach & Reach.PANIC and all(health.is_unhealthy(self._shared_ids[at]) for at in left):
                return []
        at_once = [at for at in left if until_ms[back_offs[at]] <= now]
        if at_once or not left or not reach & Reach.BACKING_OFF:
            return at_once
        return [min(left, key=lambda at: until_ms[back_offs[at]])]

    def _panics(self, now: int) -> bool:
        return self._shared.health.panics(self._shared_ids, self._panic_threshold, now)

    def _preferred(self, available: Sequence[int], key: bytes) -> int:
        """Returns which of these the policy chooses, as an index into them."""
        loads = [self._shared.counters.total(self._shared_ids[at]) for at in available]
        hashes = [self._hashes[at] for at in available]
        route = self._target.route
        return self._policy(Choice(hashes, loads, self._turn[0], key, route.load_bound, route.load_floor))
