"""The documents say what the code does: endpoints, examples, and every name that they refer to.

The tables of settings, metrics and error codes are generated; test_docs.py checks them.
"""

import ast
import json
import re
import socket
import threading
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import falcon
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.config.served_paths import is_served
from app.config.settings import Settings, load_settings
from app.errors import UpstreamErrorResponse
from tests.support.certificates import certificate, write_pair
from tests.support.forks import acquire
from tests.support.local_router import LocalRouter, Response
from tests.support.transcripts import VLLM

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs/api.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
METRICS = (ROOT / "docs/metrics.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOREIGN = {"gunicorn.conf.py", "pyproject.toml", "constraints.txt"}
"""What architecture.md may name with a dot in it, beside the names of our own code."""

Row = tuple[str, ...]

_MAKE = re.compile(r"(?:`|^    |^(?:\$ )?(?:\w+=\S+ )*)make ([a-z-]+)(?= |`|$)", re.MULTILINE)
"""A command in a line of prose, in an indented line, or in a line of its own, after what it sets."""
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: |\b(?:src|srcset)=\")(?!\w+:)([^)#\s\"]*)(?:#([^)\s]*))?", re.MULTILINE)
"""Links of all kinds, definitions, and pictures, to places inside the repository."""

NAMES = {"{name}": "simulated", "{version}": "1", "{response_id}": "resp_d41d8cd98f00b204"}
"""What stands for the variable parts of a path, in a router of default settings."""
BODY = {
    "model": "simulated",
    "messages": [{"role": "user", "content": "Hello"}],
    "prompt": "Hello",
    "input": "Hello",
    "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["Hello"]}],
    "text_input": "Hello",
    "max_tokens": 1,
    "query": "Hello",
    "documents": ["Hello"],
    "tokens": [72, 105],
}
"""A body that every POST takes, whatever its protocol, but those that take a form."""
FORM = '--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nsimulated\r\n--x--\r\n'
FORM_HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}

CHAT, V2_INFER = "/v1/chat/completions", "/v2/models/v2/infer"
FAILING = {
    "unreachable": "upstream_unreachable",
    "hangs up": "upstream_broken",
    "silent": "upstream_timeout",
    "busy": "no_endpoint",
    "full": "model_limit_reached",
    "v2": "protocol_mismatch",
    "nobody": "model_not_found",
}
"""Models of a routes file that a chat can't be had with, and the code of the answer that says so."""
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(VLLM.events)
"""What is sent by the one model that does not fail."""
KEPT: list[socket.socket] = []
"""Sockets whose ports nobody else must get."""


class Endpoint(NamedTuple):
    """A row of the table of endpoints, path by path and method by method."""

    method: str
    path: str

    def filled(self) -> str:
        """The path with something for its variable parts."""
        path = self.path
        for variable, value in NAMES.items():
            path = path.replace(variable, value)
        return path


def responses(local: LocalRouter, routes: list[tuple[str, str]]) -> dict[str, Response]:
    """Ask a router of default settings everything that the tests below want to know."""
    router, ask = local.router, local.ask
    seen = {
        "routes": Response(0, {}, json.dumps(routes)),
        "example": ask("POST", "/infer", example_request()),
        "not JSON": ask("POST", "/infer", "Hello"),
        "no such path": ask("GET", "/nowhere"),
        "wrong method": ask("GET", "/infer"),
    }
    router.models.registry.responses.note(NAMES["{response_id}"], "simulated", "", "")
    for endpoint in documented_endpoints():
        if endpoint.path.startswith(("/v1/audio/trans", "/v1/images/edits")):
            seen[f"{endpoint.method} {endpoint.path}"] = ask(endpoint.method, endpoint.path, FORM, FORM_HEADERS)
            continue
        body = json.dumps(BODY) if endpoint.method == "POST" else ""
        seen[f"{endpoint.method} {endpoint.path}"] = ask(endpoint.method, endpoint.filled(), body)
    permits = [acquire(router.limiter) for _ in range(router.settings.max_concurrency)]
    seen["rejection"] = ask("POST", "/infer", example_request())
    for permit in permits:
        permit.release()
    return seen


def routes_of_failing_models() -> str:
    """A routes file of models whose servers fail in every way."""
    models = [
        {"name": "unreachable", "endpoints": [model_server(None)]},
        {"name": "hangs up", "endpoints": [model_server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")]},
        {"name": "silent", "endpoints": [model_server(b"")], "timeouts": {"first_byte_s": 0.1}},
        {
            "name": "busy",
            "endpoints": [model_server(b"HTTP/1.1 503 \r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n")],
            "ejection": {"consecutive_failures": 1, "max_share": 1},
        },
        {"name": "refuses", "endpoints": [model_server(b"HTTP/1.1 418 \r\ncontent-length: 4\r\n\r\nshut")]},
        {"name": "full", "endpoints": [model_server(None)], "max_concurrency": 1},
        {"name": "v2", "endpoints": [model_server(None)], "protocol": "v2"},
        {"name": "streams", "endpoints": [model_server(STREAM)]},
        {"name": "replaced", "endpoints": [model_server(None)], "fallback": ["refuses"]},
        {"name": "found", "dns": "m.test:80", "no_endpoint_wait_s": 1},
        {"name": "reports", "endpoints": [model_server(None)], "balancing": "least_load"},
    ]
    return json.dumps({"models": models})


def responses_of_failing_models(local: LocalRouter) -> dict[str, Response]:
    """Ask a router in front of those models."""
    limit = local.router.models.registry.find("full").limit
    assert limit is not None
    limit.acquire()
    chat = {name: json.dumps(BODY | {"model": name}) for name in (*FAILING, "refuses", "replaced")}
    return {
        "passed on": local.ask("POST", CHAT, chat["busy"]),
        **{name: local.ask("POST", CHAT, chat[name]) for name in FAILING},
        "refused": local.ask("POST", "/infer", chat["refuses"]),
        "relayed": local.ask("POST", CHAT, chat["refuses"]),
        "replaced": local.ask("POST", CHAT, chat["replaced"]),
        "problem": local.ask("POST", "/infer", chat["unreachable"]),
        "streamed": local.ask("POST", CHAT, json.dumps(BODY | {"model": "streams"})),
        "of v2": local.ask("POST", V2_INFER, json.dumps(BODY)),
        "metrics": local.ask("GET", "/metrics"),
    }


def model_server(answer: bytes | None) -> str:
    """The URL of a server that answers everything with these bytes and hangs up.

    Without any bytes it says nothing and waits; None: it can't be reached.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    if answer is not None:
        listener.listen()
    KEPT.append(listener)

    def serve() -> None:
        with suppress(OSError):  # it is closed
            while answer:
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Response]:
    """The responses of a router without any setting but a pod name."""
    routes: list[tuple[str, str]] = []
    add_route = falcon.App.add_route

    def note_route(app: Any, template: str, resource: object, *, suffix: str | None = None) -> None:
        path, ending = template.replace(":path}", "}"), f"_{suffix}" if suffix else ""
        routes.extend((name, path) for name in falcon.HTTP_METHODS if hasattr(resource, f"on_{name.lower()}{ending}"))
        add_route(app, template, resource, suffix=suffix)

    with (
        patch.object(falcon.App, "add_route", note_route),
        LocalRouter(tmp_path_factory.mktemp("router"), POD_NAME="router-0") as local,
    ):
        return responses(local, routes)


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Response]:
    """The responses of a router in front of model servers that fail."""
    folder = tmp_path_factory.mktemp("routed")
    file = folder / "routes.json"
    file.write_text(routes_of_failing_models())
    gateway = {"TENANT_HEADER": "X-Tenant", "TRUSTED_PROXIES": "127.0.0.1"}
    certificate_file, key_file = map(str, write_pair(folder, "tls", certificate("router", [])))
    tls = {"TLS_CERT_FILE": certificate_file, "TLS_KEY_FILE": key_file}
    with LocalRouter(folder, ROUTES_FILE=str(file), **gateway, **tls) as local:
        local.headers["X-Tenant"] = "t"
        local.router.models.publisher.publish_found({"dns m.test:80": ()})
        local.router.metrics.count_discovery("dns m.test:80", "ok")
        found = responses_of_failing_models(local)
    while KEPT:
        listener = KEPT.pop()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends the `accept` of its thread
        listener.close()
    return found


def section(heading: str, document: str = API) -> str:
    """The part of a document under a heading of the second level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading!r}"
    return found[1]


def table(text: str) -> list[Row]:
    """The rows of the table in a text, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def documented_endpoints() -> list[Endpoint]:
    """Method and path of everything in the table of endpoints."""
    return [
        Endpoint(method, path)
        for paths, methods, _ in table(section("Paths"))
        for path in re.findall(r"`([^`]+)`", paths)
        for method in methods.split(", ")
    ]


def example_request() -> str:
    """The body that the curl example sends."""
    found = re.search(r"curl .* -d '(.*)'", section("One request"))
    assert found
    return found[1]


def example_answers() -> list[str]:
    """The bodies that are shown in answer, in order."""
    return re.findall(r"^(\{.*\})$", section("One request"), re.MULTILINE)


def test_documented_defaults_are_what_an_empty_environment_gives() -> None:
    """To set a variable to its documented default changes nothing."""
    documented = {
        variable.strip("`"): default.strip("`")
        for variable, default, _, _ in table(SETTINGS)
        if default.startswith("`")
    }
    assert load_settings(documented, cpus=3) == load_settings({}, cpus=3)
    assert load_settings({}, cpus=3).web_concurrency == 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_variables_named_in_prose_exist(document: Path) -> None:
    """A variable that a document names is a setting, the build's, the system's, OpenTelemetry's, or the reader's."""
    text = document.read_text()
    named = set(re.findall(r"`(?!OTEL_)([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|BIND|HOSTNAME|PATH)\b", text))
    named -= set(re.findall(r"^\$ export (\w+)=", text, re.MULTILINE))
    assert named <= {field.name.upper() for field in msgspec.structs.fields(Settings)} | {
        "HOSTNAME",
        "PATH",
        "ROUTER_ADMIN_KEY",
        "ROUTER_ADMIN_URL",
        "ROUTER_KEY",
        "ROUTER_PURE",
        "SSL_CERT_FILE",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["router", "routed"])
def test_metrics_table_is_the_metrics_page(name: str, request: pytest.FixtureRequest) -> None:
    """Every metric of the page has its row with type, labels and help text, and no row is without one."""
    seen: dict[str, Response] = request.getfixturevalue(name)
    page = seen["GET /metrics" if name == "router" else "metrics"].body
    rows = {row[0]: row for row in table(METRICS)}
    names = set()
    for family in text_string_to_metric_families(page):
        metric = f"`{family.name}_total`" if family.type == "counter" else f"`{family.name}`"
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        names.add(metric)
        assert rows[metric][1] == family.type
        assert rows[metric][3] == family.documentation
        assert labels <= set(re.findall(r"`(\w+)`", rows[metric][2]))
    assert name == "router" or names == rows.keys()


@pytest.mark.slow
def test_metrics_named_in_prose_exist(routed: dict[str, Response]) -> None:
    """A metric named in any document is on the page."""
    page = routed["metrics"].body
    for document in DOCUMENTS:
        for name in re.findall(r"`(router_\w+)", document.read_text()):
            assert re.search(rf"^# TYPE {name} ", page, re.MULTILINE), f"{document.name} names {name}"


def code_of(answer: Response) -> str:
    """The code of an error, in whichever form."""
    body = json.loads(answer.body)
    return str(body["error"]["code"] if isinstance(body.get("error"), dict) else body["code"])


@pytest.mark.slow
def test_errors_of_the_router_are_documented(router: dict[str, Response], routed: dict[str, Response]) -> None:
    """Every status and code that the router returned has its row, and no code has two."""
    own = [*router.values(), *(routed[name] for name in FAILING)]
    returned = {(str(answer.status), f"`{code_of(answer)}`") for answer in own if answer.status >= 400 and answer.body}
    rows = documented_errors()
    assert len(returned) > len(FAILING)
    assert returned <= {row[:2] for row in rows}
    assert len({row[1] for row in rows}) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), FAILING.items())
def test_failures_are_answered_as_documented(routed: dict[str, Response], name: str, code: str) -> None:
    """Every way in which a model can't be had has its row, in the form of OpenAI's errors."""
    (documented,) = [row for row in documented_errors() if row[1] == f"`{code}`"]
    answer = routed[name]
    error = json.loads(answer.body)["error"]
    further = further_members() if answer.status == 429 else set()
    assert (str(answer.status), set(error)) == (documented[0], {*error_members(), *further})
    assert error["code"] == code
    assert ("retry-after" in answer.headers) == ("`Retry-After`" in documented[2])


def documented_errors() -> list[Row]:
    """The rows of the table of errors."""
    return table(section("Errors").partition("<!-- generated: errors -->")[2])


def further_members() -> set[str]:
    """The members of every 429 that the document names beside."""
    rows = table(section("Errors").partition("Every 429 has these members:\n")[2].partition("<!--")[0])
    return {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}


def error_members() -> list[str]:
    """The members of OpenAI's error object that the document names."""
    found = re.search(r'`\{"error": \{(.*)\}\}`', section("Errors"))
    assert found
    return re.findall(r'"(\w+)"', found[1])


@pytest.mark.slow
def test_errors_have_the_form_of_the_path(routed: dict[str, Response]) -> None:
    """A problem document, with `error` equal to `detail` under /v2 only; a model server's own error is not touched."""
    problem, of_v2, relayed = routed["problem"], routed["of v2"], routed["relayed"]
    assert "error" not in json.loads(problem.body)
    assert json.loads(of_v2.body)["error"] == json.loads(of_v2.body)["detail"]
    for answer in (problem, of_v2):
        assert answer.headers["content-type"] == "application/problem+json"
        assert json.loads(answer.body)["code"] == "upstream_unreachable"
    assert (relayed.status, relayed.body) == (418, "shut")
    assert (routed["passed on"].status, routed["passed on"].headers["retry-after"]) == (503, "9")


@pytest.mark.slow
def test_refusals_of_model_servers_are_quoted_to_infer(routed: dict[str, Response]) -> None:
    """`upstream_error_response` has the model server's status and quotes it."""
    refused = routed["refused"]
    assert (refused.status, json.loads(refused.body)["code"]) == (418, UpstreamErrorResponse.code)
    assert "shut" in json.loads(refused.body)["detail"]


@pytest.mark.slow
def test_paths_of_the_router_are_known_to_the_routes(router: dict[str, Response]) -> None:
    """No model can list a path of its own that the router serves anyway: it would never be reached."""
    for endpoint in documented_endpoints():
        assert is_served(endpoint.filled()), endpoint
    assert not is_served("/v1/custom")


@pytest.mark.slow
def test_endpoints_table_is_the_routes(router: dict[str, Response]) -> None:
    """Every documented method is served at its path, and every route is documented."""
    documented = documented_endpoints()
    for method, path in documented:
        assert router[f"{method} {path}"].status == 200
    assert sorted(documented) == sorted((method, path) for method, path in json.loads(router["routes"].body))


def test_start_in_front_of_model_servers_is_possible() -> None:
    """The settings of the second example are valid, and its request asks for the model that they serve."""
    shown = section("Start", README)
    given = re.search(r"^(.+=.+) make run$", shown, re.MULTILINE)
    request = re.search(r"curl localhost:8080(/v1\S+) -d '(.*)'", shown)
    assert given
    assert request
    environ = dict(item.split("=", 1) for item in given[1].split())
    assert load_settings(environ, cpus=1).model_ref == json.loads(request[2])["model"]
    assert Endpoint("POST", request[1]) in documented_endpoints()


@pytest.mark.slow
def test_example_gets_the_documented_answer(router: dict[str, Response]) -> None:
    """The curl example is answered as shown, to the byte, but for the milliseconds; the README has the same."""
    example = router["example"]
    documented = example_answers()[0]
    assert re.sub(r'(?<="processingMs":)\d+', "100", example.body) == documented
    assert example.status == 200
    assert f"content-length: {len(documented)}" in section("One request")
    for header in ("X-Request-Id", "Server-Timing"):
        assert re.search(rf"^{header}: ", section("One request"), re.MULTILINE)
        assert header.lower() in {name.lower() for name in example.headers}
    assert f"$ curl localhost:8080/infer -d '{example_request()}'\n{documented}\n" in section("Start", README)


@pytest.mark.slow
def test_rejection_is_as_documented(router: dict[str, Response]) -> None:
    """The 429 is answered as shown: status, Retry-After, content type, and body to the byte."""
    rejection = router["rejection"]
    expected_wait = re.compile(r'(?<="expected_wait_ms":)\d+')
    body, documented = (expected_wait.sub("9", text) for text in (rejection.body, example_answers()[1]))
    assert (rejection.status, body) == (429, documented)
    for name in ("retry-after", "content-type"):
        assert f"\n{name}: {rejection.headers[name]}\n" in section("One request")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    """Every `make` target that a document mentions is one that `make help` lists."""
    listed = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test"} <= listed
    assert set(_MAKE.findall(document.read_text())) <= listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    """A relative link leads to a file, and one with a fragment to a heading in it."""
    for target, fragment in (found[1:] for found in _LINK.findall(document.read_text())):
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert fragment in anchors, f"{document.name} links to #{fragment}"


def defined(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether a class, function or value is defined by this path of names, in a module's or class's statements."""
    for statement in body:
        match statement:
            case ast.ClassDef(name=name, body=inner) | ast.FunctionDef(name=name, body=inner):
                own, within = [name], inner
            case ast.Assign(targets=targets):
                own, within = [ast.unparse(target) for target in targets], []
            case ast.AnnAssign(target=target):
                own, within = [ast.unparse(target)], []
            case _:
                continue
        if names[0] in own and (len(names) == 1 or defined(within, names[1:])):
            return True
    return False


def resolves(reference: str) -> bool:
    """Whether `module.Class.method` names something in app/. Reads the source and imports nothing."""
    names = reference.split(".")
    for depth in range(len(names), 0, -1):
        folder = ROOT.joinpath("app", *names[:depth])
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file.is_file():
            return depth == len(names) or defined(ast.parse(file.read_text()).body, names[depth:])
    return False


def test_architecture_names_what_exists() -> None:
    """Every dotted name and every path in architecture.md exists, so the walk of a request can be followed."""
    spans = set(re.findall(r"`([^`\n]+)`", ARCHITECTURE))
    references = {span for span in spans if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", span)} - FOREIGN
    paths = {span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/([\w.-]+\.\w+)?", span)}
    assert len(references) >= 20
    assert {reference for reference in references if not resolves(reference)} == set()
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_architecture_names_every_package() -> None:
    """Every package and every module outside of one has its row in the table of packages, and no other has."""
    parts = {f"app/{file.parent.name}/" for file in (ROOT / "app").glob("*/__init__.py")}
    parts |= {f"app/{file.name}" for file in (ROOT / "app").glob("*.py") if file.name != "__init__.py"}
    rows = re.findall(r"^\| `(app/[^`]*)` \| .+ \|$", ARCHITECTURE, re.MULTILINE)
    assert set(rows) == parts
    assert len(rows) == len(parts)


def test_architecture_shows_every_package_in_order() -> None:
    """The picture in architecture.md shows the packages that import-linter orders, and no arrow points up."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [layer.split(" | ") for layer in contracts[0]["layers"]]
    floor_of = {package: floor for floor, packages in enumerate(floors) for package in packages}
    picture = re.search(r"```mermaid\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert picture
    arrows = re.findall(r"^    (\w+)(?:\[[^\]]*\])? --> ([\w &]+)$", picture[1], re.MULTILINE)
    drawn = {above: below.split(" & ") for above, below in arrows}
    assert drawn.keys() | {name for below in drawn.values() for name in below} == floor_of.keys()
    for above, names in drawn.items():
        assert all(floor_of[name] > floor_of[above] for name in names), above
