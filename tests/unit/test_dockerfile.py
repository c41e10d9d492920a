"""The Dockerfile: no engine builds it here, so its promises are checked one by one, by running what can be run."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.specifiers import SpecifierSet

from app.config.settings import load_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Instruction(NamedTuple):
    """One line of the Dockerfile: the name it starts with, and the rest."""

    name: str
    rest: str


def _stages() -> list[list[Instruction]]:
    """The instructions of each stage, its FROM first."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction = Instruction(*line.split(maxsplit=1))
            if instruction.name == "FROM":
                stages.append([])
            stages[-1].append(instruction)
    return stages


def _only(stage: list[Instruction], name: str) -> str:
    (rest,) = [instruction.rest for instruction in stage if instruction.name == name]
    return rest


def _copies(stage: list[Instruction]) -> list[list[str]]:
    """The words of every COPY from the project's folder: the sources, then the destination."""
    copies = [rest.split() for name, rest in stage if name == "COPY" and "--from=" not in rest]
    return [[word for word in words if not word.startswith("--")] for words in copies]


def _copy(stage: list[Instruction], work_dir: Path) -> None:
    """Do what the stage's COPYs do, with `work_dir` for its WORKDIR."""
    work_dir.mkdir()
    for *sources, destination in _copies(stage):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work_dir / destination, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, work_dir / destination)


def _is_sent(path: str) -> bool:
    """Whether .dockerignore lets the path into the build: the last line that fits it, or a folder above it, decides."""
    sent = True
    above = [path, *map(str, Path(path).parents)][:-1]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and any(fnmatch(name, line.removeprefix("!")) for name in above):
            sent = line.startswith("!")
    return sent


def test_hadolint_finds_nothing() -> None:
    """The linter has no complaint, and none was silenced."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "hadolint ignore" not in DOCKERFILE.read_text()
    assert not list(ROOT.glob(".hadolint*"))


def test_what_is_copied_exists_and_is_sent() -> None:
    """A source that is missing, or that .dockerignore holds back, fails the build."""
    sources = [source for stage in _stages() for *sources, _ in _copies(stage) for source in sources]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert _is_sent(source), source


@pytest.mark.parametrize("path", [".git/config", ".env", ".venv/bin/python", "tests/unit/test_config.py", "ops/k8s"])
def test_nothing_else_is_sent(path: str) -> None:
    """History, secrets in local files and virtual environments stay out of the build, and so out of its cache."""
    assert not _is_sent(path)
    assert not _is_sent(f"app/__pycache__/{Path(path).name}")


def test_both_stages_have_the_python_that_the_project_asks_for() -> None:
    """Compiled code and the virtual environment's links only fit where Python's minor and Debian's release agree."""
    builder, last = (_only(stage, "FROM") for stage in _stages())
    tag = re.fullmatch(r"python:(3\.\d+)-slim-([a-z]+)", last)
    assert tag, last
    python, debian = tag.groups()
    assert builder == f"python:{python}-slim-{debian} AS builder"
    assert python in SpecifierSet(PROJECT["requires-python"])


RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >> "$RECORD"
"""
"""Stands in for a program: notes how it was called."""


def test_builder_installs_the_pinned_releases(tmp_path: Path) -> None:
    """The image holds the releases that were tested, and the install puts them where the last stage takes them from."""
    builder, last = _stages()
    record = tmp_path / "calls"
    for name in ("pip", "python", "apt-get", "rm"):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(record)}
    for script in (rest for name, rest in builder if name == "RUN"):
        # What an absolute path names is not here: only the programs that are found on the PATH are called.
        subprocess.run(["sh", "-c", script.replace("/opt/router/bin/", "")], env=environment, check=True)
    (taken,) = {rest.split()[1] for name, rest in last if name == "COPY" and "--from=builder" in rest}
    (install,) = [line.split() for line in record.read_text().splitlines() if re.match("pip .* install ", line)]
    options = dict(pairwise(install))
    assert install[0] == "pip"
    assert options["--python"] == taken
    assert options["-c"] == "constraints.txt"
    assert ".[otel]" in install, "the variables of OpenTelemetry are enough to turn tracing on"


def test_builder_gets_all_that_the_installation_reads(tmp_path: Path) -> None:
    """pyproject.toml's readme is read by the build, and every module of the application is there to be installed."""
    builder, _ = _stages()
    _copy(builder, tmp_path / "src")
    assert (tmp_path / "src" / PROJECT["readme"]).is_file()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in"):
        assert (tmp_path / "src" / name).is_file()
    for kind in ("*.py", "*.pxd", "*.pyx"):
        assert {path.relative_to(tmp_path / "src") for path in (tmp_path / "src/app").rglob(kind)} == {
            path.relative_to(ROOT) for path in (ROOT / "app").rglob(kind)
        }


def test_last_stage_builds_nothing() -> None:
    """It only copies, and readable for every user: what runs no package manager has no compiler and no leftovers."""
    _, last = _stages()
    assert "RUN" not in [instruction.name for instruction in last]
    assert Instruction("COPY", "--from=builder /opt/router /opt/router") in last
    assert all(
        "--from=" in rest or "--chmod=644" in rest for name, rest in last if name == "COPY"
    )  # whatever the umask


def test_root_is_never_written_for_bytecode() -> None:
    """Bytecode is made in the builder, in the form that no change of file times makes stale, and never at run time."""
    builder, last = _stages()
    assert any(
        "-m compileall" in rest and "--invalidation-mode unchecked-hash" in rest
        for name, rest in builder
        if name == "RUN"
    )
    assert "PYTHONDONTWRITEBYTECODE=1" in _only(last, "ENV").split()


def test_last_stage_runs_as_nobody_in_particular() -> None:
    """The user is a number other than 0, or Kubernetes' runAsNonRoot refuses the image."""
    _, last = _stages()
    user, _, group = _only(last, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_container_starts_from_what_was_copied(tmp_path: Path) -> None:
    """gunicorn, in exec form, so that it gets SIGTERM itself, finds its configuration and the application."""
    builder, last = _stages()
    _copy(builder, tmp_path / "src")
    _copy(last, tmp_path / "work")
    program, *arguments = json.loads(_only(last, "ENTRYPOINT"))
    assert program == "gunicorn"
    command = [sys.executable, "-m", program, *arguments, "--check-config"]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env={"PYTHONPATH": str(tmp_path / "src")}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert _only(last, "STOPSIGNAL") == "SIGTERM"
    assert "PATH=/opt/router/bin:$PATH" in _only(last, "ENV").split()


def test_exposed_port_is_where_the_application_listens() -> None:
    """Without settings the router listens on the port that the image exposes, on all addresses."""
    _, last = _stages()
    assert load_settings({}, cpus=1).bind == f"0.0.0.0:{_only(last, 'EXPOSE')}"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_check_tells_health(status: int | None, healthy: bool) -> None:
    """The health check, run as it stands, succeeds on 200 from /healthz only, whatever proxy the environment names."""
    _, last = _stages()
    program, *arguments = json.loads(_only(last, "HEALTHCHECK").partition("CMD ")[2])
    assert program == "python"  # what the image has for certain
    port = _only(last, "EXPOSE")
    assert f"127.0.0.1:{port}/healthz" in arguments[-1]
    with _answering(status) as (free_port, asked):
        done = subprocess.run(
            [sys.executable, *(argument.replace(port, str(free_port)) for argument in arguments)],
            env={**os.environ, "http_proxy": "http://127.0.0.1:1", "no_proxy": ""},
            capture_output=True,
            check=False,
        )
    assert (done.returncode == 0) is healthy, done.stderr
    assert asked == ([] if status is None else ["/healthz"])


@contextmanager
def _answering(status: int | None) -> Iterator[tuple[int, list[str]]]:
    """A server that answers every GET with `status`, or closes at once for None; its port and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class has this name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        if status is None:
            server.server_close()
            yield port, asked
            return
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield port, asked
        finally:
            server.shutdown()
            thread.join()
