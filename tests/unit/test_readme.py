"""The documents say what the code does: settings, metrics, error codes, examples, and every name they point to.

Where a test compares a table, pytest's diff shows the rows that the document should have.
"""

import ast
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import types
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from falcon import testing
from prometheus_client.parser import text_string_to_metric_families

from app.config import Settings, load_settings
from app.errors import MalformedRequest, RouterError
from app.resources import problems
from app.resources.infer import ROUTE
from tests.support.malformed import MALFORMED

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOREIGN = {"gunicorn.conf.py", "pyproject.toml", "constraints.txt"}
"""What architecture.md may name with a dot in it, beside the names of our own code."""

Row = tuple[str, ...]


class Answer(NamedTuple):
    """What the router answered to one request."""

    status: int
    headers: dict[str, str]
    body: str


def answers() -> dict[str, Any]:
    """Ask a router of default settings all that the tests below want to know. Runs in a process of its own."""
    # Not imported at the top: to import it is to build a router from the environment.
    wsgi = importlib.import_module("app.wsgi")
    worker = types.SimpleNamespace(ppid=os.getpid())
    wsgi.lifecycle.pre_fork(None, worker)
    wsgi.lifecycle.post_fork(None, worker)
    wsgi.lifecycle.post_worker_init(worker)

    def ask(method: str, path: str, body: str = "") -> Answer:
        start = testing.StartResponseMock()
        environ = testing.create_environ(path, method=method, body=body)
        with contextlib.closing(wsgi.application(environ, start)) as chunks:
            content = b"".join(chunks)
        return Answer(int(str(start.status)[:3]), dict(start.headers or ()), content.decode())

    said = {
        "example": ask("POST", "/infer", example_request()),
        "not JSON": ask("POST", "/infer", "Hello"),
        "no such path": ask("GET", "/nowhere"),
        "wrong method": ask("GET", "/infer"),
    }
    for method, path in documented_endpoints():
        said[f"{method} {path}"] = ask(method, path, example_request() if method == "POST" else "")
    permits = [wsgi.lifecycle.limiter.acquire() for _ in range(wsgi.settings.max_concurrency)]
    said["refusal"] = ask("POST", "/infer", example_request())
    for permit in permits:
        permit.release()
    return said


@pytest.fixture(scope="module")
def router() -> dict[str, Answer]:
    """The answers of a router started with nothing in its environment but a pod name."""
    script = "import json; from tests.unit.test_readme import answers; print(json.dumps(answers()))"
    env = {"PATH": os.environ["PATH"], "POD_NAME": "router-0"}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return {name: Answer(*parts) for name, parts in json.loads(run.stdout).items()}


def section(heading: str) -> str:
    """The part of the README under a heading of the second level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {heading!r}"
    return found[1]


def table(heading: str) -> list[Row]:
    """The rows of the table in a section of the README, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def documented_endpoints() -> list[tuple[str, str]]:
    """Method and path of everything in the table of endpoints."""
    return [(method, path.strip("`")) for path, methods, _ in table("Endpoints") for method in methods.split(", ")]


def example_request() -> str:
    """The body that the README's curl example sends."""
    found = re.search(r"curl .* -d '(.*)'", section("Start"))
    assert found
    return found[1]


def example_answers() -> list[str]:
    """The bodies that the README shows in answer, in order."""
    return re.findall(r"^    (\{.*\})$", section("Start"), re.MULTILINE)


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A setting's default, as the README writes it."""
    if field.required:
        return "the usable cores"
    return "unset" if field.default in (None, ()) else f"`{field.default}`"


def test_settings_table_is_the_settings() -> None:
    """Every setting stands in the README in order, with its default, its allowed values and its meaning."""
    wanted = []
    for field in msgspec.structs.fields(Settings):
        meta = field.type.__metadata__[0]
        wanted.append((f"`{field.name.upper()}`", default_of(field), meta.extra["allowed"], meta.description))
    assert table("Settings") == wanted


def test_documented_defaults_are_what_an_empty_environment_gives() -> None:
    """To set a variable to its documented default changes nothing."""
    documented = {
        variable.strip("`"): default.strip("`")
        for variable, default, _, _ in table("Settings")
        if default.startswith("`")
    }
    assert load_settings(documented, cores=3) == load_settings({}, cores=3)
    assert load_settings({}, cores=3).web_concurrency == 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_variables_named_in_prose_exist(document: Path) -> None:
    """A variable named in any document is a setting (or HOSTNAME, which the system sets, or the shell's PATH)."""
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|BIND|HOSTNAME|PATH)\b", document.read_text()))
    assert named <= {field.name.upper() for field in msgspec.structs.fields(Settings)} | {"HOSTNAME", "PATH"}


def test_metrics_table_is_the_metrics_page(router: dict[str, Answer]) -> None:
    """Every metric of the page stands in the README with its type, labels and help text, and no other does."""
    wanted = set()
    for family in text_string_to_metric_families(router["GET /metrics"].body):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        wanted.add((f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation))
    rows = table("Metrics")
    assert set(rows) == wanted
    assert len(rows) == len(wanted)


def test_metrics_named_in_prose_exist(router: dict[str, Answer]) -> None:
    """A metric named in any document is on the page."""
    page = router["GET /metrics"].body
    for document in DOCUMENTS:
        for name in re.findall(r"`(router_\w+)", document.read_text()):
            assert re.search(rf"^# TYPE {name} ", page, re.MULTILINE), f"{document.name} names {name}"


def literal_problems() -> set[Row]:
    """Status and code of every problem that a resource answers under a code of its own, found in the source."""
    found: set[Row] = set()
    for file in (ROOT / "app/resources").glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "problems.answer":
                status, code = ast.unparse(call.args[1]), call.args[2]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    found.add((str(HTTPStatus[status.removeprefix("HTTPStatus.")].value), f"`{code.value}`"))
    return found


def test_errors_table_is_what_the_router_answers(router: dict[str, Answer]) -> None:
    """Every status and code that a client can get stands in the README, and no other does."""
    mapped = {(str(status.value), f"`{error.code}`") for error, status in problems._STATUS.items()}
    answered = {
        (str(answer.status), f"`{json.loads(answer.body)['code']}`")
        for answer in router.values()
        if answer.status >= 400 and answer.body
    }
    refused_by_parser = ", ".join(str(status) for status in sorted({status for _, status in MALFORMED.values()}))
    others = {("500", f"`{RouterError.code}`"), (refused_by_parser, f"`{MalformedRequest.code}`")}
    rows = table("Errors")
    assert {row[:2] for row in rows} == mapped | answered | literal_problems() | others
    assert len({row[1] for row in rows}) == len(rows)


def test_endpoints_table_is_the_routes(router: dict[str, Answer]) -> None:
    """Every documented method is served at its path, and every route is documented."""
    documented = documented_endpoints()
    for method, path in documented:
        assert router[f"{method} {path}"].status == 200
    routes = re.findall(r"add_route\(([^,]+),", (ROOT / "app/main.py").read_text())
    assert {path for _, path in documented} == {ROUTE if route == "ROUTE" else route.strip('"') for route in routes}


def test_example_gets_the_documented_answer(router: dict[str, Answer]) -> None:
    """The README's curl example is answered as shown, to the byte, but for the milliseconds."""
    example = router["example"]
    documented = example_answers()[0]
    assert re.sub(r'(?<="processingMs":)\d+', "100", example.body) == documented
    assert example.status == 200
    assert f"content-length: {len(documented)}" in section("Start")
    for header in ("X-Request-Id", "Server-Timing"):
        assert re.search(rf"^    {header}: ", section("Start"), re.MULTILINE)
        assert header.lower() in {name.lower() for name in example.headers}


def test_refusal_is_as_documented(router: dict[str, Answer]) -> None:
    """The README's 429 is answered as shown: status, Retry-After, content type, and body to the byte."""
    refusal = router["refusal"]
    assert (refusal.status, refusal.body) == (429, example_answers()[1])
    for name in ("retry-after", "content-type"):
        assert f"\n    {name}: {refusal.headers[name]}\n" in section("Start")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    """Every `make` target that a document mentions is one that `make help` lists."""
    listed = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test"} <= listed
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", document.read_text(), re.MULTILINE)) <= listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    """A relative link leads to a file, and one with a fragment to a heading in it."""
    for target, fragment in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", document.read_text()):
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


def test_architecture_names_every_module() -> None:
    """Every module of app/ has its line in the table of parts."""
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "app").rglob("*.py") if file.name != "__init__.py"}
    assert {module for module in modules if f"`{module}`" not in ARCHITECTURE} == set()


def test_architecture_shows_the_layers_that_are_enforced() -> None:
    """The layers in architecture.md are those that import-linter checks."""
    enforced = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert enforced
    assert "\n".join(f"    {layer}" for layer in re.findall(r'"(.*)"', enforced[1])) in ARCHITECTURE
