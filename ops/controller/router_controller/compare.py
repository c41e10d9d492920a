"""Whether an object of the cluster is as planned, so that nothing need be written.

Two questions: has every planned field its planned value (whatever the API server and others added), and does the
controller still own a field that is no longer planned? The second needs `managedFields` (the owner's fields, as the API
server keeps them for server-side apply), so a field that goes is removed after a restart of the controller too.
"""

import re
from decimal import Decimal
from typing import Any

import msgspec

from router_controller.kinds import MANAGER, Object

_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists that the API server merges by these members of their items (`x-kubernetes-list-map-keys`), as far as they tell
planned items apart. All other lists are atomic."""

_QUANTITIES = frozenset({"requests", "limits"})
_QUANTITY_FIELDS = frozenset({"averageValue"})


def as_planned(live: Object, planned: Object) -> bool:
    """Returns whether applying `planned` would change nothing."""
    return _covers(live, planned) and not _owns_more(owned_fields(live), planned)


def owned_fields(live: Object) -> Object:
    """Returns the fields that the controller has applied, in the form of `fieldsV1`."""
    for entry in live["metadata"].get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return entry.get("fieldsV1") or {}
    return {}


def _covers(live: Any, planned: Any, field: str = "", inside: str = "") -> bool:
    if isinstance(planned, dict):
        if live is None:
            live = {}
        return isinstance(live, dict) and all(
            _covers(live.get(name), value, name, field) for name, value in planned.items()
        )
    if isinstance(planned, list):
        return _covers_list(live or [], planned, field)
    if field in _QUANTITY_FIELDS or inside in _QUANTITIES:
        return quantity(live) == quantity(planned)
    if (
        live is None and planned == "" and (field, inside) == ("value", "")
    ):  # the API server leaves an empty variable's value out
        return True
    return type(live) is type(planned) and bool(live == planned)


def _covers_list(live: Any, planned: list[Any], field: str) -> bool:
    if not isinstance(live, list):
        return False
    keys = _LIST_KEYS.get(field)
    if keys is None:
        return len(live) == len(planned) and all(map(_covers, live, planned))
    found = {_identity(item, keys): item for item in live}
    return all(_covers(found.get(_identity(item, keys)), item) for item in planned)


def _identity(item: Object, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key) for key in keys)


def _owns_more(owned: Object, planned: Any) -> bool:
    """Returns whether a field of `owned` has no place in `planned`.

    `f:name` is a member, `k:{"name":"x"}` the item of a list with these members, and `v:x` the value of a set.
    """
    for path, below in owned.items():
        mark, _, name = path.partition(":")
        if mark == "f":
            if not isinstance(planned, dict) or name not in planned:
                return True
            value = planned[name]
        elif mark == "k":
            value = _item(planned, msgspec.json.decode(name))
            if value is None:
                return True
        else:  # `.` is the object itself; sets and positions occur in no planned object
            continue
        if below and _owns_more(below, value):
            return True
    return False


def _item(planned: Any, members: Object) -> Any:
    if isinstance(planned, list):
        for item in planned:
            # A member that is not planned is the default of the API server, such as `protocol: TCP`.
            if all(item.get(name, value) == value for name, value in members.items()):
                return item
    return None


_QUANTITY = re.compile(r"([+-]?[0-9]*\.?[0-9]+|[+-]?[0-9]+\.)(?:[eE]([+-]?[0-9]+)|([KMGTPE]i|[numkMGTPE]))?")
_SUFFIXES = {suffix: Decimal(1000) ** power for power, suffix in enumerate("num kMGTPE", -3)} | {
    f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)
}


def quantity(text: Any) -> Decimal | None:
    """Returns the number that a quantity such as 500m or 1Gi stands for, or None: it is no quantity."""
    found = _QUANTITY.fullmatch(str(text))
    if not found:
        return None
    number, exponent, suffix = found.groups()
    return Decimal(number).scaleb(int(exponent or 0)) * _SUFFIXES.get(suffix, Decimal(1))
