"""Whether endpoints may be used: what health checks and successful inference say of them, and when neither counts.

- **Unhealthy**: health checks have failed in a row (health_checks.py).
- **Unknown**: neither a health check nor an inference request has succeeded yet. Such an endpoint gets requests, but it
  is not up: a router is ready only after it has reached an endpoint.
- **Up**: healthy, known, and not ejected (outlier_detection.py).
- **Panic** (the word is Envoy's): fewer of a version's endpoints than the panic threshold are healthy and not ejected.
  Then it is likelier that the checks fail than that all these endpoints do, so checks are ignored. Ejections hold:
  they come from requests.

`unhealthy`, `slow` and `verified` are single stores, made by the leader, or of a constant by any worker that builds the
routes. Were a worker to store a constant late, after the routes have changed, the next failed check would correct it.
"""

from collections.abc import Sequence

from app.native import now_ms
from app.routing.endpoint_records import EndpointRecords

RECENTLY_MS = 10_000
"""For how long a successful inference request shows that an endpoint whose checks fail is of use."""


def panics(records: EndpointRecords, shared_ids: Sequence[int], threshold: float, now: int) -> bool:
    """Whether so few endpoints of a pool are healthy and not ejected that health checks are to be ignored.

    Those that drain are left out of the count: an operator has taken them away.
    """
    available = counted = 0
    for shared_id in shared_ids:
        if not records.draining[shared_id]:
            counted += 1
            available += records.unavailable_until_ms[shared_id] <= now and not records.unhealthy[shared_id]
    return available < threshold * counted


class EndpointHealth:
    """The health of all endpoints, in one process."""

    def __init__(self, records: EndpointRecords) -> None:
        self._records = records

    def is_available(self, shared_id: int, now: int) -> bool:
        """Whether the endpoint is not ejected and not unhealthy. The lock is held if an attempt follows."""
        return self._records.unavailable_until_ms[shared_id] <= now and not self._records.unhealthy[shared_id]

    def is_ejected(self, shared_id: int, now: int) -> bool:
        """Whether the endpoint is ejected, or waits for its trial to end."""
        return self._records.unavailable_until_ms[shared_id] > now

    def is_unhealthy(self, shared_id: int) -> bool:
        """Whether health checks have failed in a row."""
        return self._records.unhealthy[shared_id] != 0

    def is_draining(self, shared_id: int) -> bool:
        """Whether an operator keeps new requests away. The lock is held if an attempt follows."""
        return self._records.draining[shared_id] != 0

    def is_up(self, shared_id: int) -> bool:
        """Whether the endpoint is known to be healthy, and is not ejected.

        An endpoint whose ejection is over is up. Otherwise a router that has only such endpoints would be taken out of
        service, and would never get the request that is the trial.
        """
        return self.is_available(shared_id, now_ms()) and self._is_verified(shared_id)

    def is_known(self, shared_id: int) -> bool:
        """Whether anything is known of the endpoint, good or bad."""
        return self.is_unhealthy(shared_id) or self._is_verified(shared_id)

    def panics(self, shared_ids: Sequence[int], threshold: float, now: int) -> bool:
        """Whether health checks are to be ignored for the pool of these endpoints."""
        return panics(self._records, shared_ids, threshold, now)

    def in_use_since(self, shared_id: int) -> int:
        """Returns when the endpoint was last new, healthy again or no longer ejected, in ms; 0: at the start."""
        return max(self._records.in_use_since_ms[shared_id], self._records.closed_at_ms[shared_id])

    def unavailable_until(self, shared_id: int) -> int:
        """Returns when the ejection ends, or the lease of the trial, in ms; 0 for an endpoint that is not ejected."""
        return self._records.unavailable_until_ms[shared_id]

    def served(self, shared_id: int) -> None:
        """Record that a piece of a successful response to an inference request has come."""
        self._records.last_served_ms[shared_id] = now_ms()

    def has_served(self, shared_id: int, within_ms: int) -> bool:
        """Whether the endpoint has served an inference request within this time."""
        last = self._records.last_served_ms[shared_id]
        return last > 0 and now_ms() - last <= within_ms

    def seems_to_serve(self, shared_id: int) -> bool:
        """Whether the endpoint may well be of use although it is unhealthy.

        It has served an inference request: lately, or ever if all that is wrong with its checks is that they are slow.
        Then only requests can show what is wrong, and a router that is not ready gets none.
        """
        records = self._records
        if records.slow[shared_id] and records.last_served_ms[shared_id]:
            return True
        return self.has_served(shared_id, RECENTLY_MS)

    def set_healthy(self, shared_id: int, *, healthy: bool, slow: bool = False) -> bool:
        """Record what the health checks found; only the leader does. Returns whether the health has changed.

        `slow`: all that is wrong with an unhealthy endpoint is that no response comes in time.
        """
        records = self._records
        changed = self.is_unhealthy(shared_id) == healthy
        if healthy:
            records.verified[shared_id] = 1
            if changed:  # stored before it is healthy: so no worker sees it healthy without its slow start
                records.in_use_since_ms[shared_id] = now_ms()
        records.slow[shared_id] = slow
        records.unhealthy[shared_id] = not healthy
        return changed

    def assume_healthy(self, shared_id: int) -> None:
        """Take an endpoint that nothing is known of for healthy."""
        self._records.verified[shared_id] = 1

    def _is_verified(self, shared_id: int) -> bool:
        return self._records.verified[shared_id] != 0 or self._records.last_served_ms[shared_id] != 0
