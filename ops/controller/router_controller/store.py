"""The objects of one kind, as the API server last told.

They are kept as JSON: as Python objects, fifty resources and their children would take ten times the memory.
"""

from collections.abc import Iterable

import msgspec

from router_controller.kinds import MANAGER, Key, Kind, Object, key_of


class Store:
    """`available` is None until the kind was listed, and False while the API server lacks it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.available: bool | None = None
        self._items: dict[Key, bytes] = {}
        self._versions: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> list[Key]:
        """Returns the names of all objects."""
        return list(self._items)

    def get(self, key: Key) -> Object | None:
        """Returns the object, or None."""
        item = self._items.get(key)
        return None if item is None else msgspec.json.decode(item)

    def put(self, item: Object) -> bool:
        """Take what a watch or a write returned. Returns False for what is known, or older than that.

        The response of a write may overtake the watch: the events up to it are older then, and a write that is based on
        them would be made twice. Versions of one kind can be compared as numbers (KEP-5504); what is no number is new.
        """
        key, version = key_of(item), _version(item)
        if version is not None and version <= self._versions.get(key, -1):
            return False
        self._items[key] = msgspec.json.encode(_pruned(item))
        if version is not None:
            self._versions[key] = version
        return True

    def remove(self, item: Object) -> None:
        """Forget an object, as of the version in which it was deleted.

        The version stays, until the next list: the response of a write that came before the deletion may come after it,
        and would bring the object back for good.
        """
        key, version = key_of(item), _version(item)
        self._items.pop(key, None)
        if version is None:
            self._versions.pop(key, None)
        else:
            self._versions[key] = max(version, self._versions.get(key, -1))

    def replace(self, items: Iterable[Object]) -> set[Key]:
        """Take a list. Returns the names of what is new, changed, or gone."""
        old, self._items, self._versions = self._items, {}, {}
        for item in items:
            self.put(item)
        return {key for key in old.keys() | self._items.keys() if old.get(key) != self._items.get(key)}


def _version(item: Object) -> int | None:
    text = item["metadata"].get("resourceVersion", "")
    return int(text) if text.isdecimal() else None


def _pruned(item: Object) -> Object:
    """Of `managedFields`, which is half of an object, only the controller's own entry is ever read."""
    metadata = dict(item["metadata"])
    entries = metadata.pop("managedFields", None) or []
    own = [entry for entry in entries if entry.get("manager") == MANAGER and not entry.get("subresource")]
    if own:
        metadata["managedFields"] = own
    return item | {"metadata": metadata}
