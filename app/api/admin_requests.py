"""GET /admin/requests and /admin/requests/{id}: the records of the last requests of all workers, from any of them."""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import falcon
import gevent

from app.api.admin import respond
from app.api.admin_access import AdminAccess
from app.api.explanation import explanation_of, outcome_of
from app.native import monotonic
from app.observability import request_record
from app.observability.request_record import Beginning, RequestRecord
from app.routing.candidates import seen_of
from app.routing.registry import ModelRegistry
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.table import name_hash

_MOST = 1000
_USUAL = 100
_LOOKS = 3
_LOOK_AGAIN_S = 0.05
"""A client may have its whole response some moments before the record of its request is written."""


class RequestRecords:
    """The records, with names in the place of hashes."""

    def __init__(self, ring: RequestRing, registry: ModelRegistry, routes: Callable[[], Iterator[str]]) -> None:
        """`routes` yields the labels of the routes that there are."""
        self._ring = ring
        self._registry = registry
        self._routes = routes

    def newest(self, wanted: Callable[[Beginning], bool], most: int) -> list[dict[str, Any]]:
        """Returns the records that are wanted by what they begin with, the newest first, as they are shown."""
        names = self._names()
        return [_shown(record, slot, names) for slot, record in islice(self._newest(wanted), most)]

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Returns the newest record of this request, with its explanation, None if there is none."""
        for look in range(_LOOKS):
            if look:
                gevent.sleep(_LOOK_AGAIN_S)
            for slot, record in self._newest(lambda _: True):
                if record.is_of(request_id):
                    shown = _shown(record, slot, self._names())
                    return {**shown, "explanation": explanation_of(shown)}
        return None

    def _newest(self, wanted: Callable[[Beginning], bool]) -> Iterator[tuple[int, RequestRecord]]:
        found = []
        for copy in self._ring.copies():
            for index, beginning in enumerate(request_record.beginnings(copy.now)):
                if beginning.number and wanted(beginning):
                    found.append((-beginning.started - beginning.total_s, copy.slot, index, copy))
        heapq.heapify(found)
        while found:
            _, slot, index, copy = heapq.heappop(found)
            content = copy.record(index)
            if content is not None:
                yield slot, request_record.read(content)

    def _names(self) -> Mapping[int, str]:
        routes = self._registry.routes
        urls = (e.url for model in routes.models for version in model.versions for e in version.endpoints)
        names = [*(model.name for model in routes.models), *urls, *self._routes(), *self._registry.listed_paths()]
        return {name_hash(name): name for name in names}


def _shown(record: RequestRecord, slot: int, names: Mapping[int, str]) -> dict[str, Any]:
    overload = record.overload
    shown: dict[str, Any] = {
        "request_id": record.id_beginning + ("…" if record.id_length > len(record.id_beginning) else ""),
        "time": datetime.fromtimestamp(time.time() - monotonic() + record.started, UTC).isoformat(),
        "route": _name(record.route, names),
        "model": _name(record.model, names),
        "status": record.status,
        "outcome": "",
        "error": record.error or None,
        "rejection": record.rejection or None,
        "limit_scope": overload.limit_scope if overload else None,
        "limit": overload.limit if overload else None,
        "in_flight": overload.in_flight if overload else None,
        "ahead": overload.ahead if overload else None,
        "expected_wait_ms": overload.expected_wait_ms if overload else None,
        "queue_ms": round(record.queue_s * 1e3, 3),
        "model_ms": round(record.model_s * 1e3, 3),
        "total_ms": round(record.total_s * 1e3, 3),
        "policy": record.policy or None,
        "attempts": [
            {"endpoint": _name(each.endpoint, names), "outcome": each.outcome, "ms": round(each.seconds * 1e3, 3)}
            for each in record.attempts
        ],
        "pool_size": record.pool_size,
        "candidates": [
            {"endpoint": _name(endpoint, names), **seen_of(seen)._asdict()} for endpoint, seen in record.candidates
        ],
        "worker": slot,
    }
    shown["outcome"] = outcome_of(shown)
    return shown


def _name(hashed: int, names: Mapping[int, str]) -> str | None:
    """Returns the name with this hash; of one that is served no more, the hash."""
    return (names.get(hashed) or f"gone:{hashed & (1 << 64) - 1:016x}") if hashed else None


class RequestsResource:
    """See the module's opening line."""

    def __init__(self, access: AdminAccess, records: RequestRecords) -> None:
        self._access = access
        self._records = records

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._access.check(req)
        slow_s = req.get_param_as_float("slow", min_value=0) or 0.0
        rejected = req.get_param_as_bool("rejected") or False
        most = req.get_param_as_int("limit", min_value=1, max_value=_MOST) or _USUAL

        def wanted(record: Beginning) -> bool:
            return record.total_s >= slow_s and (not rejected or record.is_rejected)

        respond(resp, {"requests": self._records.newest(wanted, most)})

    on_head = on_get

    def on_get_one(self, req: falcon.Request, resp: falcon.Response, request_id: str) -> None:
        self._access.check(req)
        found = self._records.find(request_id)
        if found is None:
            raise falcon.HTTPNotFound(
                description="there is no record of this request: it is still in progress, or it is not among the last "
                "4096 inference requests of its worker"
            )
        respond(resp, found)

    on_head_one = on_get_one
