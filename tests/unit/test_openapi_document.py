"""The OpenAPI document has the paths that the router serves and the credentials that it needs, by its settings."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import falcon
import jsonschema  # type: ignore[import-untyped]
import pytest

from app.api import listed_paths, openapi
from app.api.openapi_examples import EXAMPLES, MODEL
from app.config.settings import load_settings
from app.errors import Overload
from tests.support.credentials import digest_of, key, write_keys
from tests.support.late import Late
from tests.support.local_router import LocalRouter

definitions: Any = Late("schemathesis.specs.openapi.definitions")
CERTIFICATES = {"TLS_CERT_FILE": "/c.pem", "TLS_CLIENT_CA_FILE": "/ca.pem"}


def document(**settings: str) -> Any:
    """The document of a router with these settings."""
    return openapi.document(load_settings(settings, 1))


@pytest.mark.parametrize(
    "settings",
    [{}, {"KEYS_FILE": "/k.toml", "ADMIN_BIND": "h:9090", "ADMIN_KEY_SHA256": digest_of("x"), **CERTIFICATES}],
)
def test_document_is_one_of_openapi_3_1(settings: dict[str, str]) -> None:
    """It keeps the schema that the OpenAPI Initiative publishes for documents of this version."""
    assert list(definitions.OPENAPI_31_VALIDATOR.iter_errors(document(**settings))) == []


@pytest.mark.parametrize("settings", [{}, {"ADMIN_BIND": "127.0.0.1:9090"}], ids=["one listener", "ADMIN_BIND"])
def test_every_method_of_every_path_that_is_served_is_there(tmp_path: Path, settings: dict[str, str]) -> None:
    """Nothing is served that the document lacks, but what routes list, and nothing else is in it."""
    added: set[tuple[str, str]] = set()
    add_route = falcon.App.add_route

    def note(app: Any, template: str, resource: object, *, suffix: str | None = None) -> None:
        add_route(app, template, resource, suffix=suffix)
        ending = f"_{suffix}" if suffix else ""
        for method in falcon.HTTP_METHODS:
            if hasattr(resource, f"on_{method.lower()}{ending}"):
                added.add((openapi._shown(template), method.lower()))

    with patch.object(falcon.App, "add_route", note), LocalRouter(tmp_path, **settings) as local:
        response = local.ask("GET", "/openapi.json")
    described = {(path, method) for path, of_path in json.loads(response.body)["paths"].items() for method in of_path}
    assert {one for one in added if one[0] != listed_paths.TEMPLATE} == described


def test_credentials_are_named_where_they_are_needed() -> None:
    """Callers' at what they ask for, the administrator's at what operators read, none at probes."""
    digest = digest_of("x")
    made = document(KEYS_FILE="/k.toml", ADMIN_BIND="h:9090", ADMIN_KEY_SHA256=digest, **CERTIFICATES)
    paths = made["paths"]
    callers: list[Any] = [{"bearer": []}, {"apiKey": []}, {"certificate": []}]
    assert paths["/v1/chat/completions"]["post"]["security"] == paths["/v1/models"]["get"]["security"] == callers
    for path in ("/", "/metrics", "/v2/models/stats", "/admin/live", "/admin/config"):
        assert paths[path]["get"]["security"] == [{"adminKey": []}, {"adminPassword": []}]
        assert "401" in paths[path]["get"]["responses"]
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert "security" not in paths[path]["get"]
        assert "401" not in paths[path]["get"]["responses"]
    assert {"401", "403"} <= paths["/v1/chat/completions"]["post"]["responses"].keys()
    assert {"401", "403"} <= paths["/v1/models/{name}"]["get"]["responses"].keys()
    named = {name for of in paths.values() for one in of.values() for each in one.get("security", ()) for name in each}
    assert named == made["components"]["securitySchemes"].keys()


def test_without_authentication_none_is_named() -> None:
    """No client asks its user for a key that nobody checks."""
    made = document(ADMIN_BIND="h:9090")
    assert made["components"]["securitySchemes"] == {}
    for of_path in made["paths"].values():
        for described in of_path.values():
            assert "security" not in described
            assert "401" not in described["responses"]


def test_gateway_that_names_the_tenant_is_no_credential_of_clients() -> None:
    """A request may be refused, but there is nothing that a client could add."""
    made = document(TENANT_HEADER="X-Tenant", TRUSTED_PROXIES="10.0.0.0/8")
    assert made["components"]["securitySchemes"] == {}
    assert "401" in made["paths"]["/v1/models"]["get"]["responses"]


def test_document_needs_a_key_as_other_paths_do(tmp_path: Path) -> None:
    """It tells which paths there are, which is nobody's business who may use none."""
    with LocalRouter(tmp_path, KEYS_FILE=write_keys(tmp_path / "k.json", key("secret"))) as local:
        assert local.ask("GET", "/openapi.json").status == 401


def test_what_a_rejection_says_of_its_limit_is_described() -> None:
    """Each form of errors has the members of the limit, none of which other errors have; the wait may be unknown."""
    schemas = document()["components"]["schemas"]
    for name in ("Problem", "ErrorOfV2", "ErrorOfOpenAI", "ErrorOfAnthropic"):
        schema = schemas[name]["properties"]["error"] if "OpenAI" in name or "Anthropic" in name else schemas[name]
        for overload in (Overload("tenant", 3, 3, 1, 20), Overload("router", 3, 3)):
            assert overload._asdict().keys() <= schema["properties"].keys()
            assert not overload._asdict().keys() & set(schema["required"])
            jsonschema.validate(overload._asdict(), {"properties": schema["properties"]})
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"limit_scope": "pod"}, {"properties": schema["properties"]})


def content_of(template: str, method: str = "post") -> tuple[Any, Any]:
    """What the document says of the request and of the successful response of an operation."""
    operation = document()["paths"][template][method]
    return operation["requestBody"]["content"], operation["responses"]["200"]["content"]


@pytest.mark.parametrize("template", EXAMPLES)
def test_examples_are_what_the_router_takes_and_gives(template: str, tmp_path: Path) -> None:
    """Whoever copies the request gets a response that has every member of the example, and is of its type."""
    asked, given = content_of(template)
    request = asked["application/json"]["example"]
    target = template.replace("{name}", MODEL)
    with LocalRouter(tmp_path, MODEL_REF=MODEL, SIMULATED_LATENCY_MS="0", POD_NAME="router-0") as local:
        if "application/json" in given:
            response = local.ask("POST", target, json.dumps(request).encode())
            assert (response.status, response.headers["content-type"].partition(";")[0]) == (200, "application/json")
            has_members(json.loads(response.body), given["application/json"]["example"])
        if "text/event-stream" in given:
            streamed = request if template.endswith("_stream") else {**request, "stream": True}
            response = local.ask("POST", target, json.dumps(streamed).encode())
            assert (response.status, response.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
            assert events_of(given["text/event-stream"]["example"]) <= events_of(response.body)
    assert ("stream" in asked["application/json"]["schema"]["properties"]) == (len(given.keys() - {"*/*"}) > 1)


def has_members(found: Any, wanted: Any) -> None:
    """Fail if a member of an object that is wanted is not in the one that was found."""
    if isinstance(wanted, dict):
        assert wanted.keys() <= found.keys()
        for name, value in wanted.items():
            has_members(found[name], value)
    elif isinstance(wanted, list) and wanted:
        has_members(found[0], wanted[0])
    else:
        assert isinstance(found, type(wanted)) or None in (found, wanted)


def events_of(stream: str) -> set[str]:
    """Names of events, and of the members of their data."""
    lines = [line.partition(": ") for line in stream.splitlines() if line]
    names = {value for name, _, value in lines if name == "event"}
    data = [value for name, _, value in lines if name == "data"]
    return (
        names | {member for value in data if value != "[DONE]" for member in json.loads(value)} | {*data} & {"[DONE]"}
    )


def test_forms_are_described_as_forms() -> None:
    """With the field that the router reads, and with a file."""
    asked, _ = content_of("/v1/audio/transcriptions")
    schema = asked["multipart/form-data"]["schema"]
    assert (asked.keys(), schema["required"]) == ({"multipart/form-data"}, ["model"])
    assert "contentMediaType" in schema["properties"]["file"]


def test_paths_of_the_admin_listener_are_told_apart() -> None:
    """The document has one list of paths for two addresses."""
    described = document(ADMIN_BIND="h:9090")
    tagged = {
        path
        for path, methods in described["paths"].items()
        if "the admin listener" in methods["get" if "get" in methods else "post"]["tags"]
    }
    assert tagged == {path for path in described["paths"] if path == "/" or path.startswith("/admin/")}
    assert {tag["name"] for tag in described["tags"]} == {
        tag for m in described["paths"].values() for o in m.values() for tag in o["tags"]
    }
