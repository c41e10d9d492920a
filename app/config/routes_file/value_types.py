"""What may stand at each place of a routes file, read from the schema's types and their metadata."""

from functools import cache
from types import NoneType
from typing import Annotated, Any, NamedTuple, Optional, get_args, get_origin

import msgspec
from msgspec import Meta


class ValueType(NamedTuple):
    """The type of a member, or of a list's items, taken apart."""

    annotated: Any
    """What msgspec converts a scalar to."""
    base: Any
    """`str`, `int`, `float`, `bool`, `Literal`, `tuple`, or a record's class."""
    optional: bool
    """Whether nothing (null) is allowed too."""
    item: Optional["ValueType"]
    """The type of a list's items."""
    least: int
    """The smallest number of items that a list may have."""
    allowed: str
    """What a scalar may be, in words."""
    about: str
    """What the member means."""

    @property
    def record(self) -> type[msgspec.Struct] | None:
        """The record that a table here becomes, or that each table of a list here becomes."""
        base = self.item.base if self.item else self.base
        return base if isinstance(base, type) and issubclass(base, msgspec.Struct) else None


def value_type(annotated: Any) -> ValueType:
    """Take an annotated type apart, through every layer of metadata and through `| None`."""
    metas: list[Meta] = []
    optional = False
    kind = annotated
    while get_origin(kind) is Annotated or NoneType in get_args(kind):
        if get_origin(kind) is Annotated:
            metas.extend(kind.__metadata__)
            kind = kind.__origin__
        else:
            optional = True
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return ValueType(
        annotated=annotated,
        base=get_origin(kind) or kind,
        optional=optional,
        item=value_type(get_args(kind)[0]) if get_origin(kind) is tuple else None,
        least=max((meta.min_length or 0 for meta in metas), default=0),
        allowed=next((meta.extra["allowed"] for meta in metas if meta.extra), ""),
        about=next((meta.description for meta in metas if meta.description), ""),
    )


@cache
def members(record: type[msgspec.Struct]) -> dict[str, ValueType]:
    """The members of a record's table, in order."""
    return {field.name: value_type(field.type) for field in msgspec.structs.fields(record)}
