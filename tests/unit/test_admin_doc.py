"""What docs/admin.md says is what the admin API has."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import falcon

from app.api.admin import explanation, resources
from app.api.admin.records import RequestRecords
from app.observability.request_record import MOST_ATTEMPTS, MOST_CANDIDATES
from app.routing.endpoint_report import EndpointReport
from app.routing.last_errors import LastError
from app.shared_memory.request_ring import RECORD_BYTES, RECORDS
from tests.support.local_router import LocalRouter

DOCUMENT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    table = DOCUMENT.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_paths_are_those_that_are_served(tmp_path: Path) -> None:
    """Every documented method is served at its path, and every path is documented; without ADMIN_BIND there is none."""
    added: list[tuple[str, str]] = []
    add_route = falcon.App.add_route

    def note(app: Any, template: str, resource: object, *, suffix: str | None = None) -> None:
        path, ending = re.sub(r"\{\w+:\w+\}", "{id}", template), f"_{suffix}" if suffix else ""
        if path.startswith("/admin/"):
            added.extend((n, path) for n in falcon.HTTP_METHODS if hasattr(resource, f"on_{n.lower()}{ending}"))
        add_route(app, template, resource, suffix=suffix)

    with patch.object(falcon.App, "add_route", note):
        (tmp_path / "without").mkdir()
        with LocalRouter(tmp_path / "without"):
            assert added == []
        with LocalRouter(tmp_path, ADMIN_BIND="127.0.0.1:9090"):
            pass
    documented = [(name.strip(), path.strip("`")) for path, names, _ in rows("Path") for name in names.split(",")]
    assert sorted(documented) == sorted(added)


def test_members_of_a_record_are_documented(tmp_path: Path) -> None:
    """Each has its row; so has every state of an endpoint, and every number is the code's."""
    with LocalRouter(tmp_path) as local:
        local.ask("POST", "/infer", '{"prompt": "x"}', {"X-Request-Id": "documented"})
        records = RequestRecords(local.router.ring, local.router.models.registry)
        shown = records.find("documented")
    assert shown is not None
    members = {name for names, _ in rows("Member") for name in re.findall(r"`(\w+)`", names)}
    assert shown.keys() - {"explanation"} == members
    outcomes = set(explanation._PARTS)
    assert outcomes <= set(re.findall(r"`(\w+)`", DOCUMENT))
    assert f"The last {RECORDS} of each worker" in DOCUMENT
    assert f"{RECORDS * RECORD_BYTES / (1 << 20):g} MiB" in DOCUMENT
    assert f"the first {MOST_CANDIDATES} of `pool_size`" in DOCUMENT
    assert f"The last {MOST_ATTEMPTS} requests to endpoints" in DOCUMENT


def test_members_of_an_endpoint_are_documented() -> None:
    """The section of endpoints names each."""
    report = EndpointReport(0, "", [], "", None, 0, in_flight=0, load=None, last_error=LastError("", 0))
    shown = resources.endpoint_shown(report, 0)
    section = DOCUMENT.partition("\n## Endpoints\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert {*shown, "age_s"} <= named
