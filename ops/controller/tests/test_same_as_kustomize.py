"""The controller makes the objects of `ops/k8s`: each difference is named here, with its reason."""

import copy
from typing import Any

import pytest
import yaml
from schemas import OPS
from test_plan import planned

from router_controller.kinds import MANAGED_BY_LABEL, Object

K8S = OPS / "k8s"
KINDS = {kind.name: body for kind, body in (planned() | planned(autoscalerClass="keda")).items()}
SHIPPED = {
    item["kind"]: item
    for path in K8S.rglob("*.yaml")
    if "overlays" not in path.parts and "model-server" not in path.parts
    for item in yaml.safe_load_all(path.read_text())
    if item and item.get("kind") in KINDS
}
ROUTES_VARIABLES = {"MODEL_REF", "ROUTES_FILE"}


@pytest.mark.parametrize("kind", sorted(SHIPPED))
def test_objects_are_those_of_kustomize(kind: str) -> None:
    """A change of one of the two without the other is noticed."""
    assert _without_differences(_renamed(KINDS[kind])) == _without_namespace(SHIPPED[kind])


def test_every_object_of_kustomize_is_made() -> None:
    """But for the ConfigMap, which an overlay adds there, and the NetworkPolicy, which needs the monitoring's name."""
    assert KINDS.keys() - SHIPPED.keys() <= {"ConfigMap"}
    assert {
        "Deployment",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "PodMonitor",
        "ScaledObject",
        "Service",
        "ServiceAccount",
    } <= (SHIPPED.keys())


def _renamed(value: Any) -> Any:
    """Returns it with the name that the objects of kustomize have."""
    if isinstance(value, dict):
        return {name: _renamed(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if isinstance(value, str):
        return "router" if value == "llama" else value.replace('deployment="llama"', 'deployment="router"')
    return value


def _without_differences(item: Object) -> Object:
    item = copy.deepcopy(item)
    metadata = item["metadata"]
    del metadata["namespace"]  # kustomize leaves it to the overlay
    del metadata["ownerReferences"]  # there is no resource there
    del metadata["labels"][MANAGED_BY_LABEL]
    if item["kind"] == "Deployment":
        pod = item["spec"]["template"]["spec"]
        del pod["volumes"]  # the routes, which an overlay adds there
        (container,) = pod["containers"]
        del container["volumeMounts"]
        container["env"] = [entry for entry in container["env"] if entry["name"] not in ROUTES_VARIABLES]
    return _sorted_env(item)


def _without_namespace(item: Object) -> Object:
    item = copy.deepcopy(item)
    item["metadata"].pop("namespace", None)
    return _sorted_env(item)


def _sorted_env(item: Object) -> Object:
    if item["kind"] == "Deployment":
        (container,) = item["spec"]["template"]["spec"]["containers"]
        container["env"].sort(key=lambda entry: entry["name"])
    return item
