"""The generated parts of the documents are what the code says now."""

from typing import Any

import msgspec
import pytest

from app.config import keys_schema, route_schema
from app.config.routes_file.value_types import members
from tests.docs import tables

RECORDS = [
    one
    for schema in (route_schema, keys_schema)
    for one in vars(schema).values()
    if isinstance(one, type) and issubclass(one, msgspec.Struct)
]
WRITTEN = {file.name: tables.parts_of(file.read_text()) for file in tables.DOCUMENTS}


@pytest.mark.parametrize("name", tables.PARTS)
def test_generated_part_is_current(name: str) -> None:
    """A change of settings, metrics, error codes or members shows in the documents."""
    (written,) = [parts[name] for parts in WRITTEN.values() if name in parts]
    assert written == tables.render(name), "the documents are out of date: run `make docs`"


def test_every_generated_part_is_known() -> None:
    """A part whose name was misspelt would never be rewritten."""
    assert sorted(name for parts in WRITTEN.values() for name in parts) == sorted(tables.PARTS)


def test_every_record_has_its_table() -> None:
    """No record of the schema is left out."""
    assert set(tables.RECORDS.values()) == set(RECORDS)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_member_says_what_it_means_and_allows(record: Any) -> None:
    """Tables and error messages are made from the metadata, so no member may lack it."""
    for name, kind in members(record).items():
        assert kind.about.endswith("."), name
        scalar = kind.item or kind
        assert scalar.record or scalar.allowed, name


def test_no_metric_has_two_rows() -> None:
    """A module that imports a metric of another one doesn't make it two."""
    names = [family.name for family in tables.FAMILIES]
    assert len(names) == len(set(names))
