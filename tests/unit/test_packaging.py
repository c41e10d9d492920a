"""What is installed, pinned, layered and committed: the rules that no single module can keep for itself."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONG_MODULES: dict[str, str] = {}
"""Modules of app/ with more than 300 lines, and why each is better in one piece."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions of app/ with more than 40 lines, and why each is better in one piece."""


def pins() -> dict[str, Version]:
    """The releases that constraints.txt pins, by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines]
    bad = [line for line, pair in zip(lines, pairs, strict=True) if pair is None]
    assert not bad, f"constraints.txt holds more than name==version: {bad}"
    return {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs if pair is not None}


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, for running and for the checks."""
    project = PROJECT["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


def everything() -> set[str]:
    """The canonical names of all distributions that an installation of the project with its checks consists of."""
    found: set[str] = set()
    ahead = [(requirement, "") for requirement in direct()]
    while ahead:
        requirement, extra = ahead.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not wanted or name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            ahead.extend((Requirement(text), extra) for extra in ("", *requirement.extras))
    return found


def test_pins_lie_within_the_bounds() -> None:
    """Every dependency has a lower bound, and constraints.txt pins a release within it."""
    pinned = pins()
    for requirement in direct():
        assert [specifier.operator for specifier in requirement.specifier] == [">="], str(requirement)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


@pytest.mark.slow
def test_nothing_that_is_installed_floats() -> None:
    """The dependencies of the dependencies are pinned too, so every installation is the same."""
    assert everything() <= pins().keys()


def test_wheel_holds_the_application_and_nothing_else() -> None:
    """Only `app` is packaged, and each of its folders is a package, without which it would be left out."""
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["app", "app.*"]
    folders = {file.parent for file in (ROOT / "app").rglob("*.py")}
    assert {str(folder) for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_one_least_python_everywhere() -> None:
    """pyproject.toml, its tools, and the Makefile agree on the least release of Python."""
    major, minor = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert PROJECT["tool"]["mypy"]["python_version"] == f"{major}.{minor}"
    assert f"sys.version_info < ({major}, {minor})" in (ROOT / "Makefile").read_text()
    assert f"Python {major}.{minor} or newer" in (ROOT / "README.md").read_text()


def test_ci_runs_what_developers_run() -> None:
    """CI is `make test` and nothing else, so a green run at home means a green run there."""
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith(("#", "set ", "cd "))] == ["exec make test"]


def lint_imports(project: Path) -> "subprocess.CompletedProcess[str]":
    """Check the contracts of the project in this folder, and of its own `app`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the application and its contracts, to break."""
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_imports_keep_the_contracts(project: Path) -> None:
    """Imports point down, the cap knows no HTTP, and nothing in app/ needs tests or ops."""
    run = lint_imports(project)
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("errors", "from app.config import settings", "Packages: imports point down"),
        ("shared_memory/slots", "from app.admission import limiter", "Packages: imports point down"),
        ("observability/metrics", "from app.api import exchange", "Packages: imports point down"),
        ("a_new_package/__init__", "", "Packages: imports point down"),
        ("admission/permit", "from app.admission import limiter", "admission: imports point down"),
        ("server/a_new_module", "", "server: imports point down"),
        ("net/disconnect", "from app.net import timed_socket", "net: imports point down"),
        ("admission/limiter", "import falcon", "The cap knows no HTTP"),
        ("shared_memory/table", "from gunicorn import util", "The cap knows no HTTP"),
        ("server/worker", "from app.routing import registry", "The server knows no model"),
        ("routing/registry", "import falcon", "Only api imports Falcon"),
        ("api/application", "import ops", "The application stands without its tests and its operators' files"),
    ],
)
def test_contracts_bite(project: Path, module: str, line: str, broken: str) -> None:
    """An import that points up, sideways or to HTTP breaks its contract, and so does a module without a place."""
    file = project / "app" / f"{module}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{file.read_text() if file.exists() else ''}\n{line}\n")
    run = lint_imports(project)
    assert run.returncode == 1, run.stderr
    assert f"{broken} BROKEN" in run.stdout


def test_every_package_has_its_contract_and_its_promise() -> None:
    """A package of several modules has a contract of its own, and its opening lines say what it promises."""
    contracts = {name for one in PROJECT["tool"]["importlinter"]["contracts"] for name in one.get("containers", [])}
    for folder in {file.parent for file in (ROOT / "app").glob("*/__init__.py")}:
        modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
        promise = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert len(promise) > 80, folder.name
        assert len(modules) < 2 or f"app.{folder.name}" in contracts, folder.name


def test_long_modules_have_a_reason() -> None:
    """A module over 300 lines is listed with its reason, and the list holds no other."""
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (ROOT / "app").rglob("*.py")}
    assert {name for name, length in lengths.items() if length > 300} == LONG_MODULES.keys()


@pytest.mark.parametrize(
    "pattern",
    [
        r"(pypi|pythonhosted|npmjs|deb\.debian)\.(org|com)",
        r"(extra-)?index-ur[l]|find-link[s]",
        r"(^|[^a-z])/(home|root|work|Users)/[A-Za-z.]",  # not after a letter: `docs/root/` is no absolute path
    ],
    ids=["registry", "option of pip", "folder"],
)
def test_repository_knows_no_address_of_a_registry_nor_anyones_folders(pattern: str) -> None:
    """No file holds a package registry's address or a path on somebody's machine: it must work anywhere."""
    run = subprocess.run(
        ["git", "grep", "--untracked", "-nIE", pattern], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "")


def test_benches_that_are_named_exist() -> None:
    """Whatever the documents and the Makefile call a bench is one, and every bench is named there."""
    texts = "".join((ROOT / name).read_text() for name in ("docs/performance.md", "docs/balancing.md", "Makefile"))
    listed = re.findall(r'BENCH(?: \?)?=\s*"?([a-z][a-z ]*)', texts)
    named = {word for words in listed for word in words.split()} | set(re.findall(r"tests[./]bench[./](\w+)", texts))
    runnable = {file.stem for file in (ROOT / "tests/bench").glob("*.py") if "__main__" in file.read_text()}
    assert named - {"go", "side_by_side"} == runnable


def test_long_functions_have_a_reason() -> None:
    """A function over 40 lines is listed with its reason, and the list holds no other."""
    long = set()
    for file in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.FunctionDef)
                and node.end_lineno is not None
                and node.end_lineno - node.lineno >= 40
            ):
                long.add(f"{file.relative_to(ROOT)}:{node.name}")
    assert long == LONG_FUNCTIONS.keys()
