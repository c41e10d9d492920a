"""Kubernetes events on failures, so that `kubectl describe` tells them; few enough to harm nobody."""

import time
import uuid
from datetime import UTC, datetime

from router_controller.api import Api
from router_controller.errors import ApiFailure
from router_controller.kinds import EVENT, INFERENCE_SERVICE, MANAGER, Key, Object, key_of

LEAST_INTERVAL_S = 10.0
REPEAT_S = 600.0


class Events:
    """For each resource, one event in 10 s at most, and the same one again after 10 min at the earliest."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._last: dict[Key, tuple[float, str]] = {}

    async def warn(self, resource: Object, reason: str, message: str) -> None:
        """Record a failure. An event that can't be made is left out: the status says the same."""
        key, now = key_of(resource), time.monotonic()
        last = self._last.get(key)
        if last and now - last[0] < (REPEAT_S if last[1] == reason + message else LEAST_INTERVAL_S):
            return
        self._last[key] = now, reason + message
        try:
            await self._api.create(EVENT, _event(resource, reason, message, self._instance))
        except ApiFailure:
            pass  # the failure itself is in the status and in the log

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._last.pop(key, None)


def _event(resource: Object, reason: str, message: str, instance: str) -> Object:
    metadata = resource["metadata"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": INFERENCE_SERVICE.api_version,
            "kind": INFERENCE_SERVICE.name,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:1024],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "reportingInstance": instance,
    }
