"""docs/routing.md says what the code does: the members of a routes file, the example, and the lists of names in it.

Where a test compares a table, pytest's diff shows the rows that the document should have. What a member means is
written by hand; where the record says something of the member, the test wants the numbers and names of that in it.
"""

import ast
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta

from app.api import dispatch as door
from app.config import route_schema as routes
from app.config import routes_source
from app.config.routes_file import _ALLOWED, _HEADER, _NAME, _WORD
from app.protocols.registered import adapter_of
from app.routing import endpoint_pool as version
from app.routing import health_checks
from app.routing import outlier_detection as endpoints
from app.routing import remote_model as remote
from app.routing import retry_budget as budget
from app.routing import route_store as publication
from app.routing.policies import POLICIES
from app.shared_memory import counters as usage
from app.upstream import headers, pool

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/routing.md").read_text()
RECORDS = {
    "The file": routes.Routes,
    "A model": routes.Model,
    "A version": routes.Version,
    "An endpoint": routes.Endpoint,
    "Timeouts": routes.Timeouts,
    "Ejection": routes.Ejection,
    "Health checks": routes.HealthCheck,
}
"""The heading of each table of members, and the record that the members are of."""
IN_WORDS = {_NAME: "a name", _WORD: "a word", _HEADER: "a header's name"}
BY_HAND = {"url": "an http:// or https:// URL", "credential_file": "an absolute path"}
"""What may stand there, of members that the record says no more of than that they are text."""

Row = tuple[str, ...]


def section(heading: str) -> str:
    """The part of the document under a heading of the second or third level, up to the next."""
    found = re.search(rf"^###? {re.escape(heading)}\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/routing.md has no section {heading!r}"
    return found[1]


def table(heading: str) -> list[Row]:
    """The rows of the table in a section, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def members(record: type[msgspec.Struct]) -> list[Row]:
    """What can be told of a record's members: name, default, and what is allowed."""
    place = "models." if record in (routes.Version, routes.Timeouts, routes.Ejection, routes.HealthCheck) else ""
    place = {routes.Model: "models.", routes.Endpoint: "models.versions.endpoints."}.get(record, place)
    if record is not routes.Model and place == "models.":
        place += {"Version": "versions.", "HealthCheck": "health_check."}.get(record.__name__, "")
    return [
        (f"`{field.name}`", default_of(field), allowed(field.name, field.type, place))
        for field in msgspec.structs.fields(record)
    ]


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A member's default, as the document writes it."""
    if field.required:
        return "needed"
    if isinstance(field.default, msgspec.Struct):
        return "see below"
    if field.default in (None, ()):
        return "none"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{str(field.default).replace('F', 'f')}`"


def allowed(name: str, annotated: Any, place: str) -> str:
    """What may stand there, as the document writes it."""
    annotated = without_none(annotated)
    kind = getattr(annotated, "__origin__", annotated) if hasattr(annotated, "__metadata__") else annotated
    if name in BY_HAND:
        said = BY_HAND[name]
    elif kind is str:
        text = _ALLOWED[place + name]
        said = IN_WORDS.get(text, text)
    elif kind in (int, float):
        said = bounds(annotated.__metadata__[0])
    elif kind is bool:
        said = "true or false"
    elif get_origin(kind) is Literal:
        *most, last = get_args(kind)
        said = f"{', '.join(most)} or {last}"
    elif get_origin(kind) is tuple:
        said = "a list of tables" if isinstance(get_args(kind)[0], type) else "a list of names"
    else:
        assert issubclass(kind, msgspec.Struct)
        said = "a table"
    return said


def bounds(meta: Meta) -> str:
    """From where to where a number may go."""
    low = f"above {meta.gt:g}, up to" if meta.gt is not None else f"{meta.ge:g} to"
    return f"{low} {meta.le:.7g}"


def without_none(annotated: Any) -> Any:
    """The type, without the None that stands for leaving the member out."""
    if get_origin(annotated) is UnionType or NoneType in get_args(annotated):
        (annotated,) = (part for part in get_args(annotated) if part is not NoneType)
    return annotated


def attribute_docstrings(record: type[msgspec.Struct]) -> dict[str, str]:
    """What the record says of its members."""
    (node,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(node, ast.ClassDef)
    said = {}
    for before, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said[ast.unparse(before.target)] = str(after.value.value)
    return said


@pytest.mark.parametrize(("heading", "record"), RECORDS.items())
def test_tables_are_the_records(heading: str, record: type[msgspec.Struct]) -> None:
    """Every member stands in its table in order, with its default and what is allowed, and a meaning."""
    rows = table(heading)
    assert [row[:3] for row in rows] == members(record)
    assert all(len(row) == 4 and row[3].endswith(".") for row in rows)


@pytest.mark.parametrize(("heading", "record"), RECORDS.items())
def test_meanings_name_what_the_records_name(heading: str, record: type[msgspec.Struct]) -> None:
    """A member, path or header that a record names in its own words is named by the document as well."""
    meanings = {row[0].strip("`"): row[3] for row in table(heading)}
    for member, said in attribute_docstrings(record).items():
        for name in re.findall(r"`[^`]+`", said):
            assert name in meanings[member], f"{member}: {said}"


def test_every_record_has_its_table() -> None:
    """No record of the schema is left out."""
    records = [one for one in vars(routes).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    assert set(RECORDS.values()) == set(records)


def test_words_for_allowed_values_are_explained() -> None:
    """The short words of the tables are said in full once."""
    words = section("Every member").replace("\n", " ")
    for text, word in IN_WORDS.items():
        assert f"a **{word.removeprefix('a ')}** is {text}" in words


def test_example_is_the_file() -> None:
    """The example is docs/routes.example.toml, to the byte."""
    found = re.search(r"^```toml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found
    assert found[1] == (ROOT / "docs/routes.example.toml").read_text()


def test_policies_are_those_there_are() -> None:
    """The table of policies has a row for each, in order."""
    assert [row[0].strip("`") for row in table("Balancing")] == list(POLICIES)


def test_headers_are_those_that_are_dropped() -> None:
    """The document names every header that the router drops, sets or takes for a credential."""
    text = section("Headers").lower()
    named = headers._HOP_BY_HOP | headers._OUR_OWN | headers._NOT_PASSED_BACK
    assert {name for name in named if f"`{name}`" not in text} == set()
    assert headers._VIA in text


def test_credentials_of_clients_are_documented() -> None:
    """Every header that the document calls a credential is taken for one."""
    (row,) = [line for line in section("Headers").splitlines() if "credentials of the client" in line]
    named = re.findall(r"`([A-Z][A-Za-z-]+)`", row.split("|")[2])
    assert len(named) >= 4
    assert all(headers._CREDENTIAL.fullmatch(name.lower()) for name in named)


def test_health_check_paths_are_documented() -> None:
    """What is asked by default stands in the table of health checks."""
    for protocol in ("openai", "v2"):
        assert f"`{adapter_of(protocol).health_path}`" in section("Health checks")


def either(statuses: Iterable[int]) -> str:
    """These statuses in words."""
    *most, last = sorted(statuses)
    return f"{', '.join(map(str, most))} or {last}"


def test_numbers_in_prose_are_the_codes() -> None:
    """Numbers that are no setting, each in a sentence of its own."""
    text = re.sub(r"\s+", " ", DOCUMENT)
    for sentence in (
        either(health_checks._ALIVE),
        either(version._FAILURES),
        either(remote._ANSWERS_TO_REPEAT),
        f"at most {endpoints._MAX_AWAY_MS // 1000} seconds",
        f"{endpoints._PROBE_LEASE_MS // 1000} seconds",
        f"a reserve of {budget._RESERVE_MILLI // 1000}",
        f"{usage.MAX_IDS} endpoints and models",
        f"{routes_source._MAX_FILE_BYTES >> 10} KiB",
        f"{version._READ_WHOLE_BYTES >> 10} KiB",
        f"{pool.MAX_IDLE} idle connections",
        f"{pool.MAX_IDLE_S:g} seconds",
        f"{publication.MAX_BYTES >> 10} KiB",
        f"`{door.PIN}`",
    ):
        assert sentence in text, sentence
