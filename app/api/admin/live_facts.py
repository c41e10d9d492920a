"""What a live event says that is not counted: the router, and the latest rejections in words."""

import time
from importlib import metadata
from typing import Any

from app.api.admin.explanation import explanation_of
from app.api.admin.records_query import Wanted
from app.api.admin.resources import AdminApi
from app.compiled import form
from app.observability.metrics import SharedState
from app.shared_memory.drain import Drain

_REJECTIONS = 8
_LOOK_AGAIN_S = 4.0
"""Looking for the newest records reads those of all workers, which takes some milliseconds."""


class LiveFacts:
    """Reads them, in one worker."""

    def __init__(self, api: AdminApi, drain: Drain) -> None:
        self._api = api
        self._drain = drain
        self._build = {"version": metadata.version("inference-router"), "form": form()}
        self._rejections: list[dict[str, Any]] = []
        self._rejected = self._rejected_before = 0
        """How many rejections there were at the event before, and at the one before those that are shown were found."""
        self._looked_at = 0.0

    def read(self, state: SharedState) -> dict[str, Any]:
        """Returns what is to be said at this moment, beside what the state says. Other greenlets may run meanwhile."""
        api, limiter = self._api, self._api.limiter
        full = state.inflight >= state.max_concurrency or state.queued > 0
        return {
            "pod": api.settings.pod_name,
            **self._build,
            "queue_size": limiter.queue_size,
            "expected_wait_ms": limiter.expected_wait_ms(state.queued) if full else 0,
            "draining": self._drain.begun,
            "routes": {"generation": api.registry.generation, "stale": bool(api.store.stale[0])},
            "rejections": self._latest_rejections(sum(model.rejected for model in state.models)),
        }

    def _latest_rejections(self, rejected: int) -> list[dict[str, Any]]:
        """Returns the newest records of rejected requests. `rejected` is how many there were, ever.

        A request is counted a moment before its record is written. So the records are read again after the event that
        first had the number, and only those of the event before it are taken for seen.
        """
        before, self._rejected = self._rejected, rejected
        now = time.monotonic()
        if rejected != self._rejected_before and now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at, self._rejected_before = now, before
            found = self._api.records.newest(Wanted(rejected=True, most=_REJECTIONS))
            self._rejections = [{**record, "explanation": explanation_of(record)} for record in found]
        return self._rejections
