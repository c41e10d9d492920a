"""Publishing the keys file: at the start, on HUP, and when it changes. All workers use the new keys from one moment.

An invalid file never replaces a valid one. The arbiter and the leader may publish at the same time. So each notes which
keys are current before it reads the file, and reads it again if others are by then: keys that were removed never come
back by the slower of the two.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec
import structlog

from app.admission.tenant_limit import OTHER
from app.auth.layouts import API_KEYS
from app.config.keys_file import read_keys
from app.config.keys_schema import Keys
from app.config.routes_file.source import Source
from app.config.text_file import state_of
from app.errors import KeysError, RoutesError
from app.observability.auth_metrics import AuthMetrics
from app.shared_memory.counters import InflightCounters
from app.shared_memory.shared_document import SharedDocument, Superseded
from app.shared_memory.table import SharedTable

_log = structlog.get_logger("router.keys")


class KeysPublisher:
    """Reads the file and publishes what it says. Without a file, there are no keys, and one tenant, OTHER."""

    def __init__(self, file: str | None, table: SharedTable, counters: InflightCounters, metrics: AuthMetrics) -> None:
        self.document = SharedDocument(table, API_KEYS)
        self._file = None if file is None else Path(file)
        self._counters = counters
        self._held_us = table.array("tenant_held_us")
        self._stale = table.cell("api_keys_stale")
        self._metrics = metrics
        self._seen: object = None
        self.read: tuple[Keys, Source] | None = None
        """What the last valid file said, and where its members are."""
        self.loads = 0
        """How often it was loaded."""

    @property
    def is_stale(self) -> bool:
        """Whether the newest file is invalid, and older keys are current in its place."""
        return bool(self._stale[0])

    def publish(self) -> bool:
        """Publish what the file says. Returns whether that differs from what was current. Raises KeysError."""
        while True:
            generation = self.document.generation
            # The state is noted before the file is read: a change in between causes one read too many, never one less.
            self._seen = None if self._file is None else state_of(self._file)
            keys = Keys() if self._file is None else self._read_file(self._file)
            assign = partial(self._counters.assign, tenants_in(keys), reset=self._reset)
            try:
                return self.document.publish(msgspec.json.encode(keys), generation, assign)
            except Superseded:
                continue
            except RoutesError:
                raise KeysError(f"{self._file}: too many tenants, those of requests in progress included") from None
            except ValueError as error:
                raise KeysError(f"{self._file}: {error}") from None

    def republish(self) -> None:
        """Publish while the server runs. If the file is invalid, log that and keep the current keys."""
        try:
            changed = self.publish()
        except KeysError as error:
            self._stale[0] = 1
            self._metrics.keys_reloads["refused"].inc()
            _log.error("keys refused; the old ones stay", reason=str(error))
            return
        if changed or self._stale[0]:  # also when the file is again what it was before it became invalid
            self._stale[0] = 0
            self._metrics.keys_reloads["ok"].inc()
            _log.info("keys published", generation=self.document.generation)

    def republish_if_changed(self) -> None:
        """Publish again if the file was written or replaced since it was read."""
        if self._file is not None and state_of(self._file) != self._seen:
            self.republish()

    def _read_file(self, file: Path) -> Keys:
        sources: list[Source] = []
        keys = read_keys(file, sources=sources)
        self.read = keys, sources[0]
        self.loads += 1
        return keys

    def _reset(self, shared_id: int) -> None:
        self._held_us[shared_id] = 0


def tenants_in(keys: Keys) -> Iterable[str]:
    """Returns the tenants that are counted apart: those that are listed, else those of the keys; and OTHER."""
    listed = [tenant.name for tenant in keys.tenants] or [key.tenant for key in keys.keys]
    return dict.fromkeys((*listed, OTHER))
