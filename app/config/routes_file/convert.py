"""Plain values become the schema's records. Each mistake is a RoutesError that names the place and what is allowed.

Where the source collects mistakes, a member that is wrong is left out: it has its default or, if it has none, a text
that stands for nothing.

The walk follows the schema. It reports unknown members, missing members and wrong containers itself, and leaves each
scalar to msgspec. The text of msgspec's errors is never read: what is allowed is in the member's own metadata.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from app.config.route_schema import Endpoint, Model, Version
from app.config.routes_file.source import SHORT_FORM, SOURCES, Path, Source, known
from app.config.routes_file.value_types import ValueType, members

_NUMBERS = {int: "a whole number, ", float: "a number, "}
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a table",
    list: "a list",
    type(None): "nothing",
}
_UNQUOTED = (bool, int, float)
"""What a text without quotes may turn into."""
_WRONG = object()
"""In the place of a value that is wrong."""


def to_record(source: Source, record: type[msgspec.Struct], value: object, path: Path) -> Any:
    """The record that a table stands for. Raises RoutesError."""
    table = _SHORT_FORMS.get(record, _as_it_is)(value)
    if not isinstance(table, dict):
        source.report(path, f"must be a table, not {_kind(table)}")
        table = {}
    known_members = members(record)
    for name in table:
        if name not in known_members:
            source.report((*path, name), _unknown(record, value, name, path))
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(record):
        if field.required:
            values[field.name] = () if known_members[field.name].item else _stand_in(source)
            if field.name not in table and isinstance(value, dict | str):
                needed = (
                    "endpoints, dns, service or versions" if (record, field.name) == (Model, "versions") else field.name
                )
                source.report(path, f"must have {needed}", field.name)
    for name in table:
        if name in known_members:
            made = _to_value(source, known_members[name], table[name], (*path, name))
            if made is not _WRONG:
                values[name] = made
    return record(**values)


def _to_value(source: Source, kind: ValueType, value: object, path: Path) -> Any:
    if value is None and kind.optional:
        return None
    if kind.item is not None:
        if not isinstance(value, list):
            source.report(path, f"must be a list, not {_kind(value)}")
            return _WRONG
        if len(value) < kind.least:
            source.report(path, f"must have at least {kind.least} item")
        items = (_to_value(source, kind.item, item, (*path, index)) for index, item in enumerate(value))
        return tuple(_stand_in(source) if item is _WRONG else item for item in items)
    if kind.record is not None:
        return to_record(source, kind.record, value, path)
    try:
        return msgspec.convert(value, kind.annotated)
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter where mistakes are collected: no text at all
        pass
    source.report(path, f"must be {_NUMBERS.get(kind.base, '')}{kind.allowed}{_got(kind, value)}")
    return _WRONG


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "another thing")  # where mistakes are collected: else there is none


def _stand_in(source: Source) -> str:
    """Returns a text that no file holds, and that differs from all others."""
    return f"\0{len(source.mistakes or ())}"


def is_stand_in(text: str) -> bool:
    """Whether a text stands for a value that is missing or wrong."""
    return text.startswith("\0")


def _got(kind: ValueType, value: object) -> str:
    """What the value is instead, where it is of another type than the member."""
    expected = str if kind.base is Literal else kind.base
    if type(value) is expected or (expected is float and type(value) is int):
        return ""
    quotes = ": put it in quotes" if kind.base is str and isinstance(value, _UNQUOTED) else ""
    return f", not {_kind(value)}{quotes}"


def _unknown(record: type[msgspec.Struct], written: Any, name: str, path: Path) -> str:
    if record is Model and name in SHORT_FORM:
        where = "together with versions" if "versions" in written else f"without one of {', '.join(SOURCES)}"
        return f"must not be there {where}"
    return f"is no member: {known(path)}"


# A short form is written in full before its table is read. What doesn't have the form stays as it is.


def _as_it_is(value: Any) -> Any:
    return value


def _full_model(model: Any) -> Any:
    """A model with one version may hold that version's members itself, and a simulated model needs no version."""
    if not isinstance(model, dict) or "versions" in model:
        return model
    if any(name in model for name in SOURCES):
        version = {name: model[name] for name in SHORT_FORM if name in model}
        return {name: model[name] for name in model if name not in SHORT_FORM} | {"versions": [version]}
    return model | {"versions": [{}]} if model.get("protocol") == "simulated" else model


def _full_endpoint(endpoint: Any) -> Any:
    """An endpoint may be its URL, and a URL may end with slashes."""
    if isinstance(endpoint, str):
        endpoint = {"url": endpoint}
    if isinstance(endpoint, dict) and isinstance(url := endpoint.get("url"), str):
        return endpoint | {"url": url.rstrip("/")}
    return endpoint


def _full_version(version: Any) -> Any:
    """A port may be a number, or text."""
    if isinstance(version, dict) and type(port := version.get("port")) is int:
        return version | {"port": str(port)}
    return version


_SHORT_FORMS: dict[type, Callable[[Any], Any]] = {
    Model: _full_model,
    Version: _full_version,
    Endpoint: _full_endpoint,
}
