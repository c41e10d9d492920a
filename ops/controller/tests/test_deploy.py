"""What `deploy/`, `ops/kserve` and `ops/gateway` hold: the rights, the pods' security, and objects that fit schemas."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import msgspec
import pytest
import yaml
from packaging.requirements import Requirement
from permissions import DEPLOY, rules_of
from schemas import OPS, errors, foreign_schema
from test_plan import planned

from app.config.settings import Settings, load_settings
from router_controller.kinds import SERVICE_ACCOUNT
from router_controller.settings import Settings as Own
from tests.support.ops import kustomize

CHILD = ["list", "watch", "create", "patch"]
RIGHTS = {
    ("inference-router.io", "inferenceservices"): ["list", "watch"],
    ("inference-router.io", "inferenceservices/status"): ["patch"],
    ("inference-router.io", "inferenceservices/finalizers"): ["update"],
    ("", "configmaps"): CHILD,
    ("", "serviceaccounts"): CHILD,
    ("", "services"): CHILD,
    ("apps", "deployments"): CHILD,
    ("policy", "poddisruptionbudgets"): [*CHILD, "delete"],
    ("autoscaling", "horizontalpodautoscalers"): [*CHILD, "delete"],
    ("keda.sh", "scaledobjects"): [*CHILD, "delete"],
    ("monitoring.coreos.com", "podmonitors"): [*CHILD, "delete"],
    ("", "events"): ["create"],
}


def load(path: Path) -> list[Any]:
    """Returns the objects in a file."""
    return [item for item in yaml.safe_load_all(path.read_text()) if item]


@pytest.mark.parametrize("mode", ["cluster", "one-namespace"])
def test_rights_are_these_and_no_more(mode: str) -> None:
    """No Secrets, no pods, no RBAC objects, and in one namespace a Role only. The requests are checked by the fake."""
    granted: dict[tuple[str, str], list[str]] = {}
    for rule in rules_of(f"{mode}/role.yaml"):
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            granted |= {(group, resource): rule["verbs"] for resource in rule["resources"]}
    assert granted == RIGHTS
    kinds = {item["kind"] for item in load(DEPLOY / mode / "role.yaml")}
    assert kinds == ({"ClusterRole", "ClusterRoleBinding"} if mode == "cluster" else {"Role", "RoleBinding"})
    assert rules_of("base/lease-role.yaml") == [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["inference-router-controller"],
            "verbs": ["get", "update"],
        },
    ]


def test_routers_may_read_endpoint_slices_where_their_service_is() -> None:
    """The controller may make no RBAC objects: a Role and a binding are ready, for the ServiceAccount that it makes."""
    (role,), (binding,) = (load(DEPLOY / "discovery" / name) for name in ("role.yaml", "role-binding.yaml"))
    for item in (role, binding):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    account = planned()[SERVICE_ACCOUNT]["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]


@pytest.mark.parametrize("mode", ["cluster", "one-namespace", "discovery"])
def test_kustomize_builds_what_is_deployed(mode: str) -> None:
    """Every object has a namespace of its own, but those of the whole cluster, and references lead to what is there."""
    objects = kustomize(DEPLOY / mode)
    whole = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace"}
    assert all(("namespace" in item["metadata"]) == (item["kind"] not in whole) for item in objects)
    named = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for item in objects:
        if item["kind"].endswith("RoleBinding") or item["kind"] == "ClusterRoleBinding":
            assert (item["roleRef"]["kind"], item["roleRef"]["name"]) in named
            (subject,) = item["subjects"]
            if mode != "discovery":
                accounts = [other["metadata"] for other in objects if other["kind"] == "ServiceAccount"]
                assert {"name": subject["name"], "namespace": subject["namespace"]} == {
                    name: accounts[0][name] for name in ("name", "namespace")
                }


@pytest.mark.parametrize("file", ["service-account.yaml", "lease-role.yaml", "deployment.yaml", "crd.yaml"])
def test_objects_fit_the_schemas_of_kubernetes(file: str) -> None:
    """No field is unknown or of a wrong type."""
    for item in load(DEPLOY / "base" / file):
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def test_controller_runs_restricted() -> None:
    """Under the restricted Pod Security Standard, which its namespace enforces."""
    (deployment,) = load(DEPLOY / "base/deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (namespace,) = load(DEPLOY / "cluster/namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {entry["name"].lower() for entry in container["env"]} <= set(Own.__dataclass_fields__)


def test_dockerfile_is_of_the_routers_python() -> None:
    """The image runs what pyproject.toml installs, as the user that the Deployment names."""
    own, router = ((OPS.parent / name).read_text() for name in ("ops/controller/Dockerfile", "Dockerfile"))
    assert [line for line in own.splitlines() if line.startswith("FROM")] == [
        line for line in router.splitlines() if line.startswith("FROM")
    ]
    assert "USER 10001:10001" in own
    hadolint = Path(sys.executable).with_name("hadolint")
    subprocess.run([hadolint, OPS / "controller/Dockerfile"], check=True)
    project = tomllib.loads((OPS / "controller/pyproject.toml").read_text())["project"]
    pins = [line for line in (OPS / "controller/constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert set(pins) <= set((OPS.parent / "constraints.txt").read_text().splitlines())
    assert {Requirement(each).name.lower() for each in project["dependencies"]} <= {
        Requirement(pin).name.lower().replace("_", "-") for pin in pins
    }
    assert project["scripts"] == {"router-controller": "router_controller.__main__:run"}


def test_readme_names_every_setting() -> None:
    """And none that does not exist."""
    table = (OPS / "controller/README.md").read_text()
    for name in Own.__dataclass_fields__:
        assert f"| `{name.upper()}` |" in table


@pytest.mark.parametrize(
    ("file", "crds"), [("inference-service.yaml", "kserve-isvc.yaml"), ("serving-runtime.yaml", "kserve-sr.yaml")]
)
def test_kserve_takes_the_router(file: str, crds: str) -> None:
    """The objects fit KServe's CRDs, and the settings are the router's."""
    (item,) = load(OPS / "kserve" / file)
    assert errors(foreign_schema(crds, item["kind"]), item) == []
    spec = item["spec"].get("predictor", item["spec"])
    (container,) = spec["containers"]
    environment = {entry["name"]: entry.get("value", "router-0") for entry in container["env"]}
    assert environment.keys() <= {field.name.upper() for field in msgspec.structs.fields(Settings)}
    settings = load_settings(environment, cpus=1)
    (port,) = container["ports"]
    assert settings.binds == [f"0.0.0.0:{port['containerPort']}", f"0.0.0.0:{settings.admin_port}"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": int(settings.admin_port or 0)}


def test_kserve_example_is_accepted() -> None:
    """The InferenceService in the README names the runtime, and fits KServe's CRD."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (OPS / "kserve/README.md").read_text(), re.DOTALL)
    item, (runtime,) = yaml.safe_load(block), load(OPS / "kserve/serving-runtime.yaml")
    assert errors(foreign_schema("kserve-isvc.yaml", "InferenceService"), item) == []
    assert item["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]


def test_gateway_reaches_the_routers() -> None:
    """The pool fits its CRD and selects what `ops/k8s` makes; the route leads to the pool."""
    (pool,), (route,) = (load(OPS / "gateway" / name) for name in ("inference-pool.yaml", "http-route.yaml"))
    assert errors(foreign_schema("inferencepools.yaml", "InferencePool"), pool) == []
    assert pool["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "router"
    assert pool["spec"]["targetPorts"] == [{"number": 8080}]
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    group = pool["apiVersion"].split("/")[0]
    assert backend == {"group": group, "kind": pool["kind"], "name": pool["metadata"]["name"]}
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
