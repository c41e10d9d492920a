"""Server-side apply, as far as the controller needs it: who owns which field, conflicts, and removal.

A path is a tuple of `f:member` and `k:{"key":"value"}`, as in `fieldsV1`. Lists that are not in LIST_KEYS are atomic.
"""

import copy
import json
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]
Owner = tuple[str, str, str]
"""Manager, operation, subresource."""

LIST_KEYS = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
DEFAULTS = {"protocol": "TCP"}
UNOWNED = {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"}


class OwnedByOthers(Exception):
    """The message names the manager and the field."""


def leaves(value: Any, path: Path = (), name: str = "") -> dict[Path, Any]:
    """Returns every path of an object, with its value where it is a leaf."""
    found: dict[Path, Any] = {}
    if isinstance(value, dict) and value:
        for member, below in value.items():
            if path == () and member in {"apiVersion", "kind"}:
                continue
            if path == ("f:metadata",) and member in UNOWNED:
                continue
            found |= leaves(below, (*path, f"f:{member}"), member)
    elif isinstance(value, list) and name in LIST_KEYS:
        for item in value:
            here = (*path, item_key(item, name))
            found[here] = ...
            found |= leaves(item, here)
    else:
        found[path] = value
    return found


def item_key(item: Object, name: str) -> str:
    """Returns the path element of an item of a list."""
    members = {key: item.get(key, DEFAULTS.get(key)) for key in LIST_KEYS[name]}
    members = {key: value for key, value in members.items() if value is not None}
    return "k:" + json.dumps(members, separators=(",", ":"))


def merge(live: Any, applied: Any, name: str = "") -> Any:
    """Returns the live value with what is applied in its place."""
    if isinstance(live, dict) and isinstance(applied, dict):
        return live | {member: merge(live.get(member), value, member) for member, value in applied.items()}
    if isinstance(live, list) and isinstance(applied, list) and name in LIST_KEYS:
        by_key = {item_key(item, name): item for item in live}
        for item in applied:
            key = item_key(item, name)
            by_key[key] = merge(by_key.get(key), item)
        return list(by_key.values())
    return copy.deepcopy(applied)


def remove(live: Any, path: Path, name: str = "") -> None:
    """Remove the field at the path, if it is there."""
    first, rest = path[0], path[1:]
    if first.startswith("f:"):
        if not isinstance(live, dict) or first[2:] not in live:
            return
        if rest:
            remove(live[first[2:]], rest, first[2:])
        else:
            del live[first[2:]]
    elif isinstance(live, list):
        for item in list(live):
            if item_key(item, name) == first:
                if rest:
                    remove(item, rest)
                else:
                    live.remove(item)


def fields_v1(paths: set[Path]) -> Object:
    """Returns the paths in the form of `managedFields`."""
    tree: Object = {}
    for path in sorted(paths):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
    return tree


def apply(live: Object, owners: dict[Owner, set[Path]], body: Object, owner: Owner, *, force: bool) -> Object:
    """Returns the object after the apply, and changes the owners. Raises OwnedByOthers."""
    wanted, had = leaves(body), leaves(live)
    for other, paths in owners.items():
        if other == owner:
            continue
        taken = {path for path in paths & wanted.keys() if path in had and had[path] != wanted[path]}
        if taken and not force:
            raise OwnedByOthers(f'conflict with "{other[0]}": {".".join(min(taken))}')
        paths.difference_update(taken)
    shared = set().union(*(paths for other, paths in owners.items() if other != owner)) if owners else set()
    result = copy.deepcopy(live)
    for path in sorted(owners.get(owner, set()) - wanted.keys() - shared, key=len, reverse=True):
        remove(result, path)
    owners[owner] = set(wanted)
    merged: Object = merge(result, {member: value for member, value in body.items() if member != "metadata"})
    metadata = {member: value for member, value in body.get("metadata", {}).items() if member not in UNOWNED}
    merged["metadata"] = merge(merged["metadata"], metadata)
    return merged


def update(before: Object, after: Object, owners: dict[Owner, set[Path]], owner: Owner) -> None:
    """Give the owner what an update has changed, and take it from all others."""
    old, new = leaves(before), leaves(after)
    changed = {path for path, value in new.items() if old.get(path, None) != value}
    gone = old.keys() - new.keys()
    for paths in owners.values():
        paths.difference_update(changed | gone)
    owners.setdefault(owner, set()).update(changed)
