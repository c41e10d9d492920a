"""The records of the last requests of all workers, from any of them, as GET /admin/requests shows them."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from heapq import nlargest
from typing import Any

import gevent

from app.api.admin.explanation import explanation_of, outcome_of
from app.api.admin.records_query import Wanted
from app.native import monotonic
from app.observability import request_record
from app.observability.request_record import RequestRecord
from app.observability.turns import Turns
from app.protocols import adapters, infer
from app.routing.candidates import seen_of
from app.routing.registry import ModelRegistry
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.table import name_hash

_LOOKS = 3
_LOOK_AGAIN_S = 0.05
"""A client may have its whole response some moments before the record of its request is written."""
_ROUTES = (infer.ROUTE, *(operation.route for adapter in adapters.PROTOCOLS for operation in adapter.operations))
"""The labels of all routes but the listed paths."""


class RequestRecords:
    """The records, with names in the place of hashes."""

    def __init__(
        self, ring: RequestRing, registry: ModelRegistry, tenants: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        """`tenants` returns the labels of those that are counted apart."""
        self._ring = ring
        self._registry = registry
        self._tenants = tenants

    def newest(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Returns the records that are wanted, the newest first, as they are shown. Other greenlets run meanwhile."""
        turns = Turns()
        found: list[tuple[float, int, int]] = []
        for slot in self._ring.slots():
            ended = self._ended(slot, wanted, turns)
            turns.pause_if_due()
            found = nlargest(wanted.most, [*found, *ended])
            turns.pause_if_due()
        records = [
            (slot, record)
            for slot, record in self._read([(slot, index) for _, slot, index in found], turns)
            if wanted.takes(record.total_s, rejected=bool(record.rejection))
        ]
        names, tenants, shown = self._names(), self._tenant_names(), []
        for slot, record in sorted(records, key=_ended, reverse=True):
            shown.append(_shown(record, slot, names, tenants))
            turns.pause_if_due()
        return shown

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Returns the newest record of this request, with its explanation, None if there is none.

        Other greenlets run meanwhile.
        """
        for look in range(_LOOKS):
            if look:
                gevent.sleep(_LOOK_AGAIN_S)
            turns = Turns()
            places = []
            for slot in self._ring.slots():
                column = self._ring.column(slot, request_record.ID)
                places += [(slot, index) for index in request_record.may_be_of(request_id, column)]
                turns.pause_if_due()
            found = [each for each in self._read(places, turns) if each[1].is_of(request_id)]
            if found:
                slot, record = max(found, key=_ended)
                shown = _shown(record, slot, self._names(), self._tenant_names())
                return {**shown, "explanation": explanation_of(shown)}
        return None

    def _ended(self, slot: int, wanted: Wanted, turns: Turns) -> list[tuple[float, int, int]]:
        """Returns when each of a worker's requests ended that are wanted, and the places of their records."""
        ring = self._ring
        columns = (
            ring.column(slot, request_record.NUMBER),
            ring.column(slot, request_record.FLAGS),
            ring.column(slot, request_record.STARTED, "d"),
            ring.column(slot, request_record.TOTAL, "d"),
        )
        turns.pause_if_due()
        return [
            (started + total_s, slot, index)
            for index, (number, flags, started, total_s) in enumerate(zip(*columns, strict=False))
            if number and wanted.takes(total_s, rejected=request_record.is_rejection(flags))
        ]

    def _read(self, places: list[tuple[int, int]], turns: Turns) -> list[tuple[int, RequestRecord]]:
        """Returns the records at these places that are whole, each with its slot."""
        records = []
        for (slot, _), content in zip(places, self._ring.copies(places), strict=True):
            if content is not None:
                records.append((slot, request_record.read(content)))
            turns.pause_if_due()
        return records

    def _names(self) -> Mapping[int, str]:
        routes = self._registry.routes
        urls = (e.url for model in routes.models for version in model.versions for e in version.endpoints)
        names = [*(model.name for model in routes.models), *urls, *_ROUTES, *self._registry.listed_paths()]
        return {name_hash(name): name for name in names}

    def _tenant_names(self) -> Mapping[int, str]:
        # Apart from the other names: a tenant may have the name of a model.
        return {name_hash(name): name for name in self._tenants()}


def _shown(record: RequestRecord, slot: int, names: Mapping[int, str], tenants: Mapping[int, str]) -> dict[str, Any]:
    overload = record.overload
    shown: dict[str, Any] = {
        "request_id": record.id_beginning + ("…" if record.id_length > len(record.id_beginning) else ""),
        "time": datetime.fromtimestamp(time.time() - monotonic() + record.started, UTC).isoformat(),
        "route": _name(record.route, names),
        "model": _name(record.model, names),
        "asked_model": _name(record.asked or record.model, names),
        "fallback": record.fallback or None,
        "full_fallbacks": record.full_fallbacks,
        "status": record.status,
        "outcome": "",
        "error": record.error or None,
        "rejection": record.rejection or None,
        "limit_scope": overload.limit_scope if overload else None,
        "tenant": tenants.get(record.tenant),
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


def _ended(found: tuple[int, RequestRecord]) -> float:
    return found[1].started + found[1].total_s


def _name(hashed: int, names: Mapping[int, str]) -> str | None:
    """Returns the name with this hash; of one that is served no more, the hash."""
    return (names.get(hashed) or f"gone:{hashed & (1 << 64) - 1:016x}") if hashed else None
