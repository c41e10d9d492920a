"""The pages about routing say what the code does: the example and the lists of names in it.

The tables of members and of fixed values are generated; test_docs.py checks them.
"""

import re
from pathlib import Path

from app.api import dispatch
from app.protocols.adapters import adapter_of
from app.routing.load_formats import ORCA_NAMES, PAGE_NAMES
from app.routing.policies import POLICIES
from app.upstream import headers
from app.upstream.credential_names import is_credential

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("routing", "protocols", "failures")
DOCUMENT = "\n".join((ROOT / f"docs/{page}.md").read_text() for page in PAGES)
BALANCING = (ROOT / "docs/balancing.md").read_text()

Row = tuple[str, ...]


def section(heading: str, document: str = DOCUMENT) -> str:
    """The part of the document under a heading of the second or third level, up to the next."""
    found = re.search(rf"^###? {re.escape(heading)}\n(.*?)(?=^##|\Z)", document, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading!r}"
    return found[1]


def table(heading: str, document: str = DOCUMENT) -> list[Row]:
    """The rows of the table in a section, without its head."""
    lines = [line for line in section(heading, document).splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def test_example_is_the_file() -> None:
    """The example is docs/routes.example.toml, to the byte."""
    found = re.search(r"^```toml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found
    assert found[1] == (ROOT / "docs/routes.example.toml").read_text()


def test_policies_are_those_there_are() -> None:
    """The table of policies has a row for each, in order."""
    assert [row[0].strip("`") for row in table("Policies", BALANCING)] == list(POLICIES)


def test_names_of_metrics_are_those_that_are_read() -> None:
    """The tables name every metric and every named metric of a header that counts."""
    text = section("Load reports", BALANCING)
    assert [name for name in (*ORCA_NAMES, *map(bytes.decode, PAGE_NAMES)) if f"`{name}" not in text] == []


def test_headers_are_those_that_are_dropped() -> None:
    """The document names every header that the router drops, sets or takes for a credential."""
    text = section("Headers").lower()
    named = headers._HOP_BY_HOP | headers._OUR_OWN | headers._NOT_PASSED_BACK
    assert {name for name in named if f"`{name}`" not in text} == set()
    assert headers._VIA in text


def test_credentials_of_clients_are_documented() -> None:
    """Every header that the document calls a credential is taken for one, and those that it says pass are not."""
    _, _, text = section("Headers").partition("**Credentials.**")
    taken, passed = (re.findall(r"`([A-Za-z0-9-]+)`", part) for part in text.partition("Others pass")[::2])
    names = [name for name in taken if name[0].isupper()]  # the others are words of names
    assert len(names) >= 10
    assert [name for name in names if not is_credential(name.lower())] == []
    assert len(passed) >= 5
    assert [name for name in passed if is_credential(name.lower())] == []


def test_health_check_paths_are_documented() -> None:
    """What is asked by default stands in the table of health checks."""
    for protocol in ("openai", "v2"):
        assert f"`{adapter_of(protocol).health_path}`" in section("Health checks")


def test_header_that_pins_a_version_is_documented() -> None:
    """Clients can pin a version by the header that the document names."""
    assert f"`{dispatch.PIN}`" in section("Versions")
