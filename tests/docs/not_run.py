"""The commands of the documents that are not run, each kind with its reason and what is checked in its place.

A command that is not of one of these kinds is run.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import yaml

from tests.docs.documents import ROOT
from tests.support.ops import CHART, KUBECTL, chart, kustomize

_YOURS = {"YOUR-COPY-OF": "ops/k8s/overlays"}
"""What stands for a reader's own folder in a path, and a folder of the checkout that is alike."""


class Kind(NamedTuple):
    """A kind of command that is not run."""

    pattern: str
    reason: str
    check: Callable[[str], None]


def kind_of(text: str) -> Kind | None:
    """The kind of command that this is, or None: it is run."""
    return next((one for one in NOT_RUN if re.match(one.pattern, text)), None)


def _is_shell(text: str) -> None:
    """bash takes it."""
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert not checked.returncode, checked.stderr
    assert not checked.stderr, checked.stderr


def _words(text: str) -> list[str]:
    return shlex.split(text, comments=True)


def _extras_exist(text: str) -> None:
    """The extras that pip is to install are the project's."""
    _is_shell(text)
    named = re.findall(r"\[([\w,]+)\]", text)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


def _target_exists(text: str) -> None:
    """make has the target, and the benchmarks are there that BENCH names."""
    words = [word for word in _words(text) if word != "make"]
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets
    for word in words:
        if word.startswith("BENCH="):
            for name in word.removeprefix("BENCH=").split():
                assert find_spec(f"tests.bench.{name}"), name


def _module_takes(text: str) -> None:
    """The module is there, and its --help names the options."""
    words = _words(text)
    module = words[words.index("-m") + 1]
    assert find_spec(module), module
    options = [word for word in words if word.startswith("--")]
    if options:
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert not shown.returncode, shown.stderr
        assert [option for option in options if option not in shown.stdout] == []


def _only_the_cluster_is_missing(text: str) -> None:
    """kubectl understands it and gets as far as the API server, which there is none of; kustomize takes its folder."""
    for yours, ours in _YOURS.items():
        text = text.replace(yours, ours)
    folder = re.search(r"-k (\S+)", text)
    if folder:
        assert kustomize(ROOT / folder[1])
    environ = {**os.environ, "KUBECONFIG": os.devnull, "PATH": f"{os.path.dirname(KUBECTL)}:{os.environ['PATH']}"}
    script = f'kubectl() {{ command kubectl --server=http://127.0.0.1:9 "$@"; }}\n{text}'
    ran = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode, text
    assert re.search(r"connection refused|was refused", ran.stderr), ran.stderr


def _chart_takes(text: str) -> None:
    """The chart is there and renders with the values, whose names its schema checks."""
    _is_shell(text)
    words = _words(text)
    for at, word in enumerate(words):
        if word == "-f":
            assert yaml.safe_load((ROOT / words[at + 1]).read_text())
    if words[1] != "install":
        return
    assert ROOT / words[3] == CHART
    values: dict[str, object] = {}
    for at, word in enumerate(words):
        if word in ("--set", "--set-file"):
            name, _, value = words[at + 1].partition("=")
            _set(values, name.split("."), "" if word == "--set-file" else yaml.safe_load(value))
    assert chart(values, name=words[2])


def _set(values: dict[str, object], path: list[str], value: object) -> None:
    """Set a value as Helm's --set does."""
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        assert isinstance(inner, dict)
        values = inner
    values[path[-1]] = value


def _dockerfile_exists(text: str) -> None:
    """The last argument is a folder with a Dockerfile."""
    _is_shell(text)
    assert (ROOT / _words(text)[-1] / "Dockerfile").is_file()


NOT_RUN = [
    Kind(r"(python3 -m venv|pip install|\. \S+/activate$)", "it installs for minutes", _extras_exist),
    Kind(
        r"make (?!run\b)", "it runs for minutes, or changes the checkout; tests/unit/test_packaging.py", _target_exists
    ),
    Kind(r"\S*python -m tests\.", "a measurement takes minutes", _module_takes),
    Kind(r"kubectl ", "there is no cluster", _only_the_cluster_is_missing),
    Kind(r"helm ", "there is no cluster, and no Helm but its library", _chart_takes),
    Kind(r"docker build ", "there is no registry to build from", _dockerfile_exists),
    Kind(r"(\w+=\S+ )?vllm serve ", "there is no GPU", _is_shell),
]
