"""docs/migration.md: what it says of this router is there, and what it says of others has a source."""

import re

import msgspec
import pytest

from app.config import keys_schema, route_schema
from app.config.routes_file.value_types import members
from app.config.settings import Settings
from app.routing.policies import POLICIES
from tests.docs.documents import ROOT

PAGE = (ROOT / "docs/migration.md").read_text()
ROWS = [[cell.strip() for cell in line[1:-1].split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
RECORDS = [
    one
    for schema in (route_schema, keys_schema)
    for one in vars(schema).values()
    if isinstance(one, type) and issubclass(one, msgspec.Struct)
]
MEMBERS = {name for record in RECORDS for name in members(record)}
ELSEWHERE = {"threshold", "router_demand_requests", "router_model_inflight"}
"""Names of the second column that are in ops/, and metrics, which other tests look at."""


def test_names_of_this_router_are_its_own() -> None:
    """Every member, setting and policy of the second column exists."""
    named = {
        part
        for row in ROWS
        for code in re.findall(r"`([^`]+)`", row[1])
        for part in re.findall(r"\b[a-z]\w*(?:_\w+)+\b|\b[A-Z]+(?:_[A-Z0-9]+)+\b", code)
    }
    assert len(named) > 40
    known = MEMBERS | {field.name.upper() for field in msgspec.structs.fields(Settings)} | POLICIES.keys() | ELSEWHERE
    assert named - known == set()


def test_places_of_members_are_right() -> None:
    """A member with its table in front of it is in that table."""
    tables = {"timeouts": "Timeouts", "ejection": "Ejection", "health_check": "HealthCheck"}
    for table, name in re.findall(r"`(timeouts|ejection|health_check)\.(\w+)`", PAGE):
        assert name in members(getattr(route_schema, tables[table])), (table, name)


@pytest.mark.parametrize(
    "heading", ["From LiteLLM's proxy", "From vllm-router", "From SGLang's gateway", "From Knative"]
)
def test_others_have_sources(heading: str) -> None:
    """Each part begins with what it was read in, in the state that the link names."""
    part = PAGE.partition(f"## {heading}\n\n")[2].partition("\n\n")[0]
    sources = re.findall(r"\]\[([\w-]+)\]", part)
    assert part.startswith("Read in:")
    assert sources
    for source in sources:
        assert re.search(rf"^\[{source}\]: https://\S+$", PAGE, re.MULTILINE), source
