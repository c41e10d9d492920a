"""Every object of ops/, rendered by kustomize and by Helm, fits the schemas that API servers check it against.

Kubernetes' own come from PyPI (kubernetes-validate). Those of KEDA and the Prometheus Operator are the CRDs of these
projects, which lie in a folder beside the checkout.
"""

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.ops import ROOT, Object, chart, one, overlay, with_component

pytestmark = pytest.mark.slow  # it runs kubectl, Helm or promtool

CRDS = ROOT.parent / "shared/crds"
CUSTOM = {"PodMonitor": "podmonitors.yaml", "ScaledObject": "scaledobjects.yaml"}
OLDEST = "1.30"  # the first Kubernetes that has every field used without a feature gate
MAJOR, MINOR = map(int, kubernetes_validate.latest_version().split(".")[:2])
NEWEST = [f"{MAJOR}.{MINOR - age}" for age in (2, 1, 0)]
MODEL_SERVER = {"deployment": "model-server", "model": "my-model", "requestsPerPod": 24, "maxReplicas": 8}
RENDERED = {
    "base": lambda: overlay("base"),
    "dev": lambda: overlay("overlays/dev"),
    "production": lambda: overlay("overlays/production"),
    "discovery": lambda: with_component("discovery"),
    "chart": lambda: _chart("keda"),
    "chart with HPA": lambda: _chart("hpa"),
}


@cache
def _chart_text(autoscaler: str) -> str:
    values = {
        "autoscaling": {"class": autoscaler},
        "env": {"MODEL_REF": "http://127.0.0.1:9"},
        "modelServers": [MODEL_SERVER],
        "podSpec": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "cpu", "operator": "Exists"}]},
        "routes": "[[models]]\n",
        "serviceDiscovery": True,
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/token", "readOnly": True}],
        "volumes": [{"name": "token", "secret": {"secretName": "token"}}],
    }
    return json.dumps(chart(values))


def _chart(autoscaler: str) -> list[Object]:
    objects: list[Object] = json.loads(_chart_text(autoscaler))
    return objects


def _strict(schema: Any) -> Any:
    """The schema of a CRD as a JSON Schema that allows no unknown fields, as `--validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        name: {key: _strict(value) for key, value in member.items()} if name == "properties" else _strict(member)
        for name, member in schema.items()
        if name not in ("format", "default")
    }
    if strict.pop("x-kubernetes-int-or-string", False):
        strict["type"] = ["integer", "string"]
    if "properties" in strict and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@cache
def _crd(kind: str, version: str) -> Any:
    for document in yaml.safe_load_all((CRDS / CUSTOM[kind]).read_text()):
        if document and document["kind"] == "CustomResourceDefinition" and document["spec"]["names"]["kind"] == kind:
            (served,) = [each for each in document["spec"]["versions"] if each["name"] == version and each["served"]]
            schema = _strict(served["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}  # the API server has its own for it
            return schema
    raise LookupError(kind)


def _check_custom(manifest: Object) -> None:
    group, version = manifest["apiVersion"].split("/")
    assert group in (CRDS / CUSTOM[manifest["kind"]]).read_text()
    jsonschema.validate(manifest, _crd(manifest["kind"], version))


@pytest.mark.parametrize("version", [OLDEST, *NEWEST])
@pytest.mark.parametrize("name", RENDERED)
def test_objects_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    """No field is unknown or of a wrong type: in the oldest release that is promised, and in the three newest."""
    own = [each for each in RENDERED[name]() if each["kind"] not in CUSTOM]
    assert len(own) >= 4
    for each in own:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    """The schemas are strict, or the test above would show nothing."""
    broken = copy.deepcopy(one(overlay("base"), "Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST[-1], strict=True)


@pytest.mark.skipif(
    not CRDS.is_dir(), reason="the CRDs of KEDA and the Prometheus Operator are not beside the checkout"
)
@pytest.mark.parametrize("name", ["production", "chart"])
def test_custom_objects_fit_their_definitions(name: str) -> None:
    """The same for the objects of KEDA and the Prometheus Operator, whose CRDs reject what they don't define."""
    custom = [each for each in RENDERED[name]() if each["kind"] in CUSTOM]
    assert [each["kind"] for each in custom].count("ScaledObject") == 2
    assert {each["kind"] for each in custom} == CUSTOM.keys()
    for each in custom:
        _check_custom(each)
        broken = copy.deepcopy(each)
        broken["spec"]["misspelt"] = 1
        with pytest.raises(jsonschema.ValidationError):
            _check_custom(broken)


def _findings(objects: list[Object], folder: Path) -> set[str]:
    """What a policy linter (k8s-policy-guard) holds to be severe, under the Pod Security standard `restricted`."""
    manifest, report = folder / "objects.yaml", folder / "report.json"
    manifest.write_text(yaml.safe_dump_all(objects))
    linter = str(Path(sys.executable).with_name("policy-guard"))
    subprocess.run([linter, "scan", manifest, "-f", "json", "-o", report], check=True, capture_output=True, timeout=60)
    found = json.loads(report.read_text())
    assert found["summary"]["total_resources"] >= 4
    return {each["message"] for each in found["violations"] if each["severity"] in ("critical", "high")}


@pytest.mark.parametrize("name", RENDERED)
def test_policy_linter_finds_nothing_severe(name: str, tmp_path: Path) -> None:
    """No finding of high severity, under the Pod Security standard `restricted`."""
    assert _findings(RENDERED[name](), tmp_path) == set()


def test_policy_linter_sees_what_is_severe(tmp_path: Path) -> None:
    """The linter does find things in these objects, once there are any."""
    objects = copy.deepcopy(overlay("base"))
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    pod["containers"][0]["securityContext"]["privileged"] = True
    pod["hostNetwork"] = True
    assert len(_findings(objects, tmp_path)) >= 2
