"""Leader election by a Lease, as client-go does it.

A lease that others hold has run out when it was not renewed for its duration by this process's own clock, so clocks
that differ do no harm. The leader stops after two thirds of the duration without a renewal, counted from before the
request: by the time that another one takes over, it has stopped.
"""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import structlog

from router_controller.api import Api
from router_controller.errors import ApiFailure
from router_controller.kinds import LEASE, MANAGER, Object
from router_controller.metrics import LEADER

_log = structlog.get_logger(part="leader")


class Leadership:
    """One candidate. `lead` runs while it is the leader."""

    def __init__(self, api: Api, namespace: str, candidate: str, duration_s: float) -> None:
        self.holds = False
        self._api = api
        self._namespace = namespace
        self._identity = f"{candidate}_{uuid.uuid4().hex[:8]}"  # a pod that restarts is another candidate
        self._duration_s = duration_s
        self._retry_s = duration_s / 7.5
        self._seen: tuple[str, float] | None = None
        self._lease: Object | None = None

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Campaign, lead, and campaign again when the lease is lost. Releases the lease when cancelled."""
        try:
            while True:
                if await self._try_to_hold():
                    await self._lead(lead)
                left_s = self._runs_out_in_s()
                await asyncio.sleep(left_s if 0 < left_s < self._retry_s else self._retry_s)
        finally:
            await self._release()

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> None:
        self.holds = True
        LEADER.set(1)
        _log.info("leading", identity=self._identity)
        work = asyncio.ensure_future(lead())
        renewal = asyncio.ensure_future(self._renew())
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            LEADER.set(0)
            for task in (work, renewal):
                task.cancel()
            results = await asyncio.gather(work, renewal, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        self.holds = False
        _log.warning("no longer leading", identity=self._identity)

    async def _renew(self) -> None:
        """Returns when the lease can no longer be relied on."""
        renewed_at = time.monotonic()
        while True:
            left_s = renewed_at + self._duration_s * 2 / 3 - time.monotonic()
            if left_s <= 0:
                return
            started = time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    if await self._try_to_hold():
                        renewed_at = started
                    elif self._holder() not in {"", self._identity}:
                        return
            except TimeoutError:
                return
            await asyncio.sleep(self._retry_s)

    async def _try_to_hold(self) -> bool:
        """Make, take or renew the lease. Returns False if another one holds it, or the API server can't be reached."""
        try:
            self._lease = await self._api.get(LEASE, self._namespace, MANAGER)
            if not self._may_take():
                return False
            self._lease = await self._api.replace(LEASE, self._renewed(self._lease))
        except ApiFailure as failure:
            if failure.status == 404:
                return await self._make()
            if failure.status != 409:  # another one was faster
                _log.warning("lease not renewed", error=failure.message)
            return False
        return True

    async def _make(self) -> bool:
        body = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": MANAGER, "namespace": self._namespace},
        }
        try:
            self._lease = await self._api.create(LEASE, self._renewed(body))
        except ApiFailure as failure:
            if failure.status != 409:
                _log.warning("lease not made", error=failure.message)
            return False
        return True

    def _may_take(self) -> bool:
        spec = (self._lease or {}).get("spec") or {}
        if self._holder() in {"", self._identity}:
            return True
        seen = f"{spec.get('holderIdentity')} {spec.get('renewTime')}"
        if self._seen is None or self._seen[0] != seen:
            self._seen = seen, time.monotonic()
        return self._runs_out_in_s() < 0

    def _runs_out_in_s(self) -> float:
        """Returns how long the lease of another one is still valid, in seconds; less than 0 if it has run out."""
        if self._seen is None or self._lease is None:
            return self._retry_s
        duration_s = (self._lease.get("spec") or {}).get("leaseDurationSeconds") or self._duration_s
        return self._seen[1] + float(duration_s) - time.monotonic()

    def _holder(self) -> str:
        return str((((self._lease or {}).get("spec")) or {}).get("holderIdentity") or "")

    def _renewed(self, lease: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict(lease.get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1 if spec.get("holderIdentity") else 0
        spec |= {
            "holderIdentity": self._identity,
            "renewTime": now,
            "leaseDurationSeconds": math.ceil(self._duration_s),
        }
        return lease | {"spec": spec}

    async def _release(self) -> None:
        if not self.holds:
            return
        try:
            self._lease = await self._api.get(LEASE, self._namespace, MANAGER)  # a renewal may have been cut short
            if self._holder() != self._identity:
                return
            spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._api.replace(LEASE, self._lease | {"spec": spec})
            _log.info("lease released", identity=self._identity)
        except ApiFailure as failure:
            _log.warning("lease not released", error=failure.message)  # it runs out by itself
