"""The OpenAPI document: it has every path, and the running router keeps what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from app.config import served_paths
from app.protocols.adapters import PROTOCOLS
from tests.support.credentials import bearer, digest_of, key, write_keys
from tests.support.ports import free_port
from tests.support.router import Router

pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""All but those of what only a model server says: whether a body that the router passes on is accepted."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A router with a simulated model, which speaks every protocol."""
    with Router(tmp_path_factory.mktemp("openapi"), SIMULATED_LATENCY_MS=0, WEB_CONCURRENCY=1) as started:
        yield started


def test_document_has_every_path_that_is_served(router: Router) -> None:
    """Nothing is served that it does not have, but what routes list; and nothing else is in it."""
    document = requests.get(f"{router.url}/openapi.json", timeout=10).json()
    own = {template for template in served_paths._OWN if template != "/" and not template.startswith("/admin/")}
    served = {*own, *(t for a in PROTOCOLS for o in a.operations for t in o.templates)}
    assert {re.sub(r":\w+\}", "}", template) for template in served} == document["paths"].keys()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_documented_methods_are_the_ones_that_are_allowed(router: Router) -> None:
    """A 405 lists in Allow the methods that the document has for the path, and OPTIONS."""
    document = requests.get(f"{router.url}/openapi.json", timeout=10).json()
    with requests.Session() as session:
        for path, methods in document["paths"].items():
            target = path.replace("{name}", "simulated").replace("{version}", "1").replace("{response_id}", "r")
            refused = session.request("TRACE", router.url + target, timeout=10)
            allowed = set(refused.headers["Allow"].split(", ")) - {"OPTIONS"}
            assert (refused.status_code, allowed) == (405, {method.upper() for method in methods}), path


def test_router_keeps_what_the_document_says(router: Router, tmp_path: Path) -> None:
    """Schemathesis sends what it makes of the document, valid and not: each response is one that it describes."""
    before = router.metrics()["router_workers"]
    document = requests.get(f"{router.url}/openapi.json", timeout=10).json()
    operations = [f"{method} {path}" for path, methods in document["paths"].items() for method in methods]
    operations.remove("get /openapi.json")  # Schemathesis asks for it to begin with, and leaves it out
    tested, selected = schemathesis(tmp_path, router.url)
    assert tested == selected == len(operations)
    assert not [line for line in router.events() if line.get("level") == "error"]
    assert router.metrics()["router_workers"] == before


def test_admin_listener_keeps_what_the_document_says(tmp_path: Path) -> None:
    """With a key, each response there is one that is described; without, and with a client's, it is the 401."""
    admin = f"127.0.0.1:{free_port()}"
    settings: dict[str, Any] = {
        "ADMIN_BIND": admin,
        "ADMIN_KEY_SHA256": digest_of("operator"),
        "KEYS_FILE": write_keys(tmp_path / "keys.json", key("client")),
    }
    with Router(tmp_path, SIMULATED_LATENCY_MS=0, WEB_CONCURRENCY=1, **settings) as router:
        client = bearer("client")
        assert requests.get(f"{router.url}/openapi.json", timeout=10).status_code == 401
        document = requests.get(f"{router.url}/openapi.json", headers=client, timeout=10).json()
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        only = [
            "--include-path-regex=^/(admin|metrics|$|v2/models/stats)",
            "--exclude-path=/admin/live",
        ]  # which is endless
        for headers, least in ((bearer("operator"), {200}), (client, set())):
            header = f"Authorization: {headers['Authorization']}"
            url = f"--url=http://{admin}"
            tested, _ = schemathesis(tmp_path, str(tmp_path / "openapi.json"), url, f"--header={header}", *only)
            assert tested > 15
            statuses = {
                requests.get(f"http://{admin}{path}", headers=headers, timeout=10).status_code
                for path in ("/", "/metrics", "/admin/config", "/admin/requests", "/v2/models/stats")
            }
            assert statuses == (least or {401})
        assert not [line for line in router.events() if line.get("level") == "error"]


def schemathesis(folder: Path, document: str, *options: str) -> tuple[int, int]:
    """Have Schemathesis ask for what the document describes. Returns how many operations it tested, of how many."""
    tool = Path(sys.executable).with_name("schemathesis")
    address = document if document.endswith(".json") else f"{document}/openapi.json"
    command = [str(tool), "run", address, f"--checks={','.join(CHECKS)}", "--max-examples=3", *options]
    more = ["--phases=coverage,fuzzing", "--seed=1", "--no-color", "--generation-database=none", "--warnings=off"]
    more += ["--suppress-health-check=too_slow"]  # which a busy machine makes it
    done = subprocess.run([*command, *more], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.search(r"Tested: (\d+)", done.stdout)
    selected = re.search(r"Selected: (\d+)/", done.stdout)
    assert tested is not None
    assert selected is not None
    return int(tested[1]), int(selected[1])


def test_document_is_json_with_a_schema_of_each_form_of_errors(router: Router) -> None:
    """The errors that the router makes have the schema that is said, `code` included."""
    response = requests.get(f"{router.url}/openapi.json", timeout=10)
    assert response.headers["Content-Type"] == "application/json"
    schemas = json.loads(response.content)["components"]["schemas"]
    assert schemas.keys() == {"InferResponse", "Problem", "ErrorOfV2", "ErrorOfOpenAI", "ErrorOfAnthropic"}
    assert {"title", "status", "detail", "code", "type"} == set(schemas["Problem"]["required"])
