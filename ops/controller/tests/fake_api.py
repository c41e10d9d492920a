"""A small API server: objects in memory, over HTTP, with the faults that a test orders.

It has server-side apply with field ownership, resource versions, generations, the status subresource, defaults that it
fills in, watches with bookmarks, and the RBAC rules of `deploy/`: a request that they do not allow gets a 403.
"""

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from defaulting import with_defaults
from field_ownership import Object, OwnedByOthers, Owner, Path, apply, fields_v1, update

Key = tuple[str, str]


class Refused(Exception):
    """A response that is an error."""

    def __init__(self, code: int, reason: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.headers = code, reason, message, headers


@dataclass
class Fault:
    """What happens to the next `times` requests with this method whose path matches."""

    method: str
    path: str
    code: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"
    hold_s: float = 0.0


@dataclass
class Entry:
    """An object, and who owns its fields."""

    item: Object
    owners: dict[Owner, set[Path]] = field(default_factory=dict)


class Cluster:
    """The objects. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 100
        self.oldest = 0
        self.objects: dict[str, dict[Key, Entry]] = {}
        self.log: dict[str, list[tuple[int, str, Object, Object]]] = {}
        self.absent: set[str] = set()

    def get(self, plural: str, key: Key) -> Object | None:
        with self.changed:
            entry = self.objects.get(plural, {}).get(key)
            return copy.deepcopy(self._shown(entry)) if entry else None

    def list(self, plural: str) -> list[Object]:
        with self.changed:
            return [copy.deepcopy(self._shown(entry)) for entry in self.objects.get(plural, {}).values()]

    def count(self, plural: str) -> int:
        """Returns how many objects of a kind there are."""
        with self.changed:
            return len(self.objects.get(plural, {}))

    def put(self, plural: str, item: Object, manager: str = "kubectl") -> Object:
        """Create an object, or replace it."""
        with self.changed:
            key = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
            entry = self.objects.setdefault(plural, {}).get(key)
            if entry is None:
                return self._add(plural, key, with_defaults(plural, item), {}, (manager, "Update", ""))
            before = entry.item
            entry.item = with_defaults(plural, item)
            update(before, entry.item, entry.owners, (manager, "Update", ""))
            return self._store(plural, entry, before)

    def edit(self, plural: str, key: Key, change: Callable[[Object], None], manager: str = "kubectl-edit") -> Object:
        """Change an object in place, its status too."""
        with self.changed:
            entry = self.objects[plural][key]
            before = entry.item
            entry.item = copy.deepcopy(before)
            change(entry.item)
            update(before, entry.item, entry.owners, (manager, "Update", ""))
            return self._store(plural, entry, before)

    def apply(self, plural: str, key: Key, body: Object, owner: Owner, *, force: bool) -> Object:
        """Server-side apply."""
        with self.changed:
            entry = self.objects.setdefault(plural, {}).get(key)
            uid, version = (body["metadata"].get(name) for name in ("uid", "resourceVersion"))
            if entry is None:
                if uid or owner[2]:
                    raise Refused(409 if uid else 404, "Conflict" if uid else "NotFound", "no such object")
                owners: dict[Owner, set[Path]] = {}
                item = apply({"metadata": {}}, owners, body, owner, force=force)
                item |= {name: body[name] for name in ("apiVersion", "kind")}
                item["metadata"] |= {"namespace": key[0], "name": key[1]}
                return self._add(plural, key, with_defaults(plural, item), owners, None)
            meta = entry.item["metadata"]
            if (uid and uid != meta["uid"]) or (version and version != meta["resourceVersion"]):
                raise Refused(409, "Conflict", "precondition failed")
            owners = copy.deepcopy(entry.owners)
            try:
                item = with_defaults(plural, apply(entry.item, owners, body, owner, force=force))
            except OwnedByOthers as error:
                raise Refused(409, "Conflict", f"Apply failed with 1 conflict: {error}") from error
            before, entry.item, entry.owners = entry.item, item, owners
            return self._store(plural, entry, before)

    def delete(self, plural: str, key: Key) -> None:
        """Delete an object. Its dependents stay, until `collect` is called."""
        with self.changed:
            entry = self.objects[plural].pop(key)
            self._record(plural, "DELETED", entry, entry.item)

    def collect(self) -> None:
        """Delete what has an owner that is gone, as the garbage collector does."""
        with self.changed:
            uids = {entry.item["metadata"]["uid"] for kind in self.objects.values() for entry in kind.values()}
            for plural, kind in self.objects.items():
                for key, entry in list(kind.items()):
                    owners = entry.item["metadata"].get("ownerReferences") or []
                    if owners and all(owner["uid"] not in uids for owner in owners):
                        self.delete(plural, key)

    def forget_history(self) -> None:
        """Make every version before now too old to watch from (410)."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.changed.notify_all()

    def _add(
        self, plural: str, key: Key, item: Object, owners: dict[Owner, set[Path]], creator: Owner | None
    ) -> Object:
        item = copy.deepcopy(item)
        item["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
        entry = self.objects[plural][key] = Entry(item, owners)
        if creator:
            update({}, item, entry.owners, creator)
        self._record(plural, "ADDED", entry, {})
        return copy.deepcopy(self._shown(entry))

    def _store(self, plural: str, entry: Entry, before: Object) -> Object:
        changed = {name: entry.item.get(name) != before.get(name) for name in entry.item.keys() | before.keys()}
        if any(different for name, different in changed.items() if name not in {"status", "metadata"}):
            entry.item["metadata"] = entry.item["metadata"] | {"generation": before["metadata"]["generation"] + 1}
        if entry.item != before:
            self._record(plural, "MODIFIED", entry, before)
        return copy.deepcopy(self._shown(entry))

    def _record(self, plural: str, change: str, entry: Entry, before: Object) -> None:
        self.version += 1
        entry.item["metadata"]["resourceVersion"] = str(self.version)
        shown = copy.deepcopy(self._shown(entry))
        self.log.setdefault(plural, []).append((self.version, change, shown, copy.deepcopy(before)))
        self.changed.notify_all()

    @staticmethod
    def _shown(entry: Entry) -> Object:
        managed = [
            {"manager": owner[0], "operation": owner[1], "subresource": owner[2], "fieldsV1": fields_v1(paths)}
            for owner, paths in entry.owners.items()
            if paths
        ]
        return entry.item | {"metadata": entry.item["metadata"] | {"managedFields": managed}}


def selects(query: dict[str, str], item: Object) -> bool:
    """Returns whether a label or field selector chooses the object."""
    if not item:
        return False
    labels = item["metadata"].get("labels") or {}
    if "labelSelector" in query:
        name, value = query["labelSelector"].split("=")
        if labels.get(name) != value:
            return False
    if "fieldSelector" in query:
        name, value = query["fieldSelector"].split("=")
        assert name == "metadata.name"
        return bool(item["metadata"]["name"] == value)
    return True


def until(condition: Callable[[], Any], what: str, deadline_s: float = 30.0) -> Any:
    """Returns the first true value of the condition. Fails after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}")


PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|scale))?"
)


def dumps(value: Any) -> bytes:
    """Returns JSON."""
    return json.dumps(value).encode()
