"""The objects under ops/k8s: complete, in step with each other, and apart from those of another router."""

import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ops import K8S, OPS, ROOT, Object, kustomize, one, overlay, with_component

pytestmark = pytest.mark.slow  # it runs kubectl, Helm or promtool

OVERLAYS = ("base", "overlays/dev", "overlays/production")
GUIDE = ROOT / "docs/kubernetes.md"
KINDS = {
    "Deployment": "apps/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "Service": "v1",
    "ServiceAccount": "v1",
}


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _container(objects: list[Object]) -> Any:
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def _cap(objects: list[Object]) -> int:
    (cap,) = [int(entry["value"]) for entry in _container(objects)["env"] if entry["name"] == "MAX_CONCURRENCY"]
    return cap


def _pod_selectors(objects: list[Object]) -> dict[str, dict[str, str]]:
    """Whatever selects the router's pods, by where it stands."""
    found = {"Service": one(objects, "Service")["spec"]["selector"]}
    for each in objects:
        if each["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            found[each["kind"]] = each["spec"]["selector"]["matchLabels"]
        if each["kind"] == "NetworkPolicy":
            found["NetworkPolicy"] = each["spec"]["podSelector"]["matchLabels"]
    for spread in one(objects, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        found[spread["topologyKey"]] = spread["labelSelector"]["matchLabels"]
    return found


# The files.


def test_every_file_is_listed() -> None:
    """A file that no kustomization lists would never be applied."""
    for file in K8S.rglob("kustomization.yaml"):
        kustomization = _load(file)
        listed = [*kustomization.get("resources", []), *kustomization.get("configurations", [])]
        there = {path.name for path in file.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in listed if name.endswith(".yaml")} == there, file


def test_overlays_use_every_component() -> None:
    """What no overlay uses would be tested by nothing, but for discovery: few need it, and it gives pods a token."""
    used = {Path(name).name for each in OVERLAYS[1:] for name in _load(K8S / each / "kustomization.yaml")["components"]}
    assert used | {"discovery"} == {folder.name for folder in (K8S / "components").iterdir()}


def test_base_has_a_short_name() -> None:
    """`kubectl apply -k ops/k8s` goes on working, and needs nothing that a bare cluster lacks."""
    assert kustomize(K8S) == overlay("base")
    assert {each["kind"] for each in overlay("base")} == {
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }


def test_dev_overlay_needs_no_add_on() -> None:
    """`kubectl apply` fails as a whole where the CRD of one object is missing."""
    groups = {each["apiVersion"] for each in overlay("overlays/dev")}
    assert groups <= {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_versions_are_those_that_are_served(name: str) -> None:
    """Each kind has the version of its API that is current."""
    for each in overlay(name):
        assert KINDS[each["kind"]] == each["apiVersion"]


def test_guide_explains_every_file() -> None:
    """The page for operators names each file and each component."""
    guide = GUIDE.read_text()
    for folder in (K8S, OPS / "prometheus"):
        for path in folder.rglob("*.yaml"):
            name = path.name if path.name != "kustomization.yaml" else path.parent.name.replace("k8s", "ops/k8s")
            assert f"`{name}`" in guide, path


# The objects with each other.


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_choose_the_routers_pods(name: str) -> None:
    """Whatever selects pods selects those of the Deployment, by name and instance, and what is named has that name."""
    objects = overlay(name)
    deployment = one(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for where, selector in _pod_selectors(objects).items():
        assert selector.keys() == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}, where
        assert selector.items() <= labels.items(), where
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == one(objects, "ServiceAccount")["metadata"]["name"]
    for each in objects:
        if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") and each["metadata"]["name"] != "model-server":
            target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
            assert each["spec"]["scaleTargetRef"] == target


@pytest.mark.parametrize("overlay_name", ["dev", "production"])
def test_two_routers_in_one_namespace_have_nothing_in_common(tmp_path: Path, overlay_name: str) -> None:
    """A copy with a suffix and a label of its own selects none of the other's pods, and has none of its names.

    If two budgets or two autoscalers match one pod, evictions fail and the autoscalers stop.
    """
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s/overlays" / overlay_name / "kustomization.yaml"
    kustomization = _load(file)
    kustomization["nameSuffix"] = "-b"
    kustomization["labels"] = [{"pairs": {"app.kubernetes.io/instance": "router-b"}, "includeSelectors": True}]
    file.write_text(yaml.safe_dump(kustomization))
    first, second = overlay(f"overlays/{overlay_name}"), kustomize(file.parent)
    labels = one(first, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for where, selector in _pod_selectors(second).items():
        assert not selector.items() <= labels.items(), where
    labels = one(second, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for where, selector in _pod_selectors(second).items():
        assert selector.items() <= labels.items(), where
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in (first, second)]
    assert not names[0] & names[1]
    if overlay_name == "dev":
        autoscaler = one(second, "HorizontalPodAutoscaler")["spec"]
        assert autoscaler["metrics"][0]["object"]["describedObject"]["name"] == "router-b"
    else:
        autoscaler = one(second, "ScaledObject", name="router")["spec"]
        assert 'deployment="router-b"' in autoscaler["triggers"][0]["metadata"]["query"]
    assert autoscaler["scaleTargetRef"]["name"] == "router-b"


def test_queries_name_the_namespace_of_the_overlay(tmp_path: Path) -> None:
    """KEDA's queries ask for the routers of the namespace that the overlay sets."""
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s/overlays/production/kustomization.yaml"
    file.write_text(re.sub("^namespace: .*$", "namespace: chat", file.read_text(), flags=re.MULTILINE))
    scaled = [each for each in kustomize(file.parent) if each["kind"] == "ScaledObject"]
    queries = [trigger["metadata"]["query"] for each in scaled for trigger in each["spec"]["triggers"]]
    assert len(queries) == 3
    assert all(re.findall('namespace="([^"]*)"', query) == ["chat"] for query in queries)


def test_service_serves_requests_and_no_metrics() -> None:
    """Clients reach the request port by the Service, and the admin port not at all."""
    (port,) = one(overlay("base"), "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, "http")


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_fixes_the_number_of_pods(name: str) -> None:
    """The autoscaler owns it: applying a file again must not reset it."""
    assert "replicas" not in one(overlay(name), "Deployment")["spec"]


def test_evictions_leave_most_pods() -> None:
    """A share and not a number, so that a large fleet is drained in reasonable time; never all of the fewest."""
    share = one(overlay("overlays/production"), "PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert share == "25%"
    fewest = one(overlay("overlays/production"), "ScaledObject", name="router")["spec"]["minReplicaCount"]
    assert fewest > -(-fewest * 25 // 100)


def test_pod_monitor_finds_the_port_and_names_the_deployment() -> None:
    """The port is a container's, and the label `deployment` is the name without what a ReplicaSet adds to it."""
    objects = overlay("overlays/production")
    (endpoint,) = one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in _container(objects)["ports"]}
    assert endpoint["path"] == "/metrics"
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["targetLabel"] == "deployment"
    for deployment in ("router", "chat-router-b"):
        assert re.fullmatch(relabeling["regex"], f"{deployment}-5d8f7c9b6c").group(1) == deployment  # type: ignore[union-attr]


def test_network_policy_keeps_the_admin_port_for_prometheus() -> None:
    """Requests come from anywhere. The admin port, which has no authentication, is open to one namespace."""
    objects = overlay("overlays/production")
    spec = one(objects, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    rules = {rule["ports"][0]["port"]: rule for rule in spec["ingress"]}
    assert rules.keys() == {port["name"] for port in _container(objects)["ports"]}
    assert "from" not in rules["http"]
    (peer,) = rules["admin"]["from"]
    assert peer["namespaceSelector"]["matchLabels"]


def test_discovery_may_read_endpoint_slices_and_nothing_else() -> None:
    """With the component, the pods have a token, and their account the right to find endpoints; without it neither."""
    objects = with_component("discovery")
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    role, binding = one(objects, "Role"), one(objects, "RoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    account = {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": "inference"}
    assert binding["subjects"] == [account]
    assert one(overlay("base"), "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


# The autoscalers.


def _targets(objects: list[Object]) -> list[float]:
    if any(each["kind"] == "HorizontalPodAutoscaler" for each in objects):
        metrics = one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
        targets = [metric[metric["type"].lower()]["target"] for metric in metrics]
        assert {target["type"] for target in targets} == {"AverageValue"}
        return [float(target["averageValue"]) for target in targets]
    (trigger,) = one(objects, "ScaledObject", name="router")["spec"]["triggers"]
    assert trigger["metricType"] == "AverageValue"
    return [float(trigger["metadata"]["threshold"])]


@pytest.mark.parametrize("name", OVERLAYS[1:])
def test_autoscaler_aims_at_seventy_percent_of_the_cap(name: str) -> None:
    """The target is a number of requests, so it goes stale when MAX_CONCURRENCY alone is changed."""
    for target in _targets(overlay(name)):
        assert target / _cap(overlay(name)) == pytest.approx(0.7)


def test_both_autoscalers_behave_alike() -> None:
    """KEDA makes an autoscaler of the same kind: load is followed at once, and a lull of minutes costs no pods."""
    behavior = one(overlay("overlays/dev"), "HorizontalPodAutoscaler")["spec"]["behavior"]
    keda = one(overlay("overlays/production"), "ScaledObject", name="router")["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == behavior
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert all(policy["value"] < 100 for policy in behavior["scaleDown"]["policies"] if policy["type"] == "Percent")


def test_autoscaler_follows_demand_beside_the_ready_pods() -> None:
    """Demand grows on when all pods are full, so that the right number of pods is asked for in one step."""
    metrics = one(overlay("overlays/dev"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [(metric["type"], metric[metric["type"].lower()]["metric"]["name"]) for metric in metrics] == [
        ("Object", "router_demand_requests"),
        ("Pods", "router_inflight_requests"),
    ]


@pytest.mark.parametrize("name", ["router", "model-server"])
def test_keda_keeps_the_pods_when_prometheus_is_gone(name: str) -> None:
    """No value is not a value of 0: after a restart of Prometheus, a full fleet must not shrink to its minimum."""
    spec = one(overlay("overlays/production"), "ScaledObject", name=name)["spec"]
    assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert spec["fallback"]["replicas"] == max(1, spec["minReplicaCount"])


def test_model_server_goes_down_to_none_when_nobody_used_it() -> None:
    """It has no pod after a while without requests, and the second trigger never asks for more than one."""
    spec = one(overlay("overlays/production"), "ScaledObject", name="model-server")["spec"]
    assert spec["minReplicaCount"] == 0
    assert spec["cooldownPeriod"] >= 300
    demand, activity = spec["triggers"]
    for trigger, threshold in product((demand, activity), ("activationThreshold",)):
        assert trigger["metadata"][threshold] == "0"
    assert int(activity["metadata"]["threshold"]) >= 10**9
