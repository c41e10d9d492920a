"""The chart under ops/helm: what it renders is what kustomize does, and its schema refuses what makes no sense."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from app.config.settings import Settings, load_settings
from tests.support.ops import CHART, ROOT, NotRendered, Object, chart, charts, one, overlay, with_component

pytestmark = pytest.mark.slow  # it runs kubectl, Helm or promtool

PRODUCTION = {
    "image": {"repository": "registry.example.com/router", "tag": "0.1.0"},
    "modelServers": [{"deployment": "model-server", "model": "my-model", "requestsPerPod": 24, "maxReplicas": 8}],
}
DEV = {
    "autoscaling": {"class": "hpa", "minReplicas": 1, "maxReplicas": 3},
    "image": {"repository": "router", "tag": "dev"},
    "memory": "256Mi",
    "podMonitor": False,
    "workers": 1,
}


def _by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """The objects by kind and name, without the one label that only Helm adds.

    Variables are sorted: kustomize puts those that a patch changes first, and none refers to another.
    """
    found = {}
    for each in copy.deepcopy(objects):
        each["metadata"]["labels"].pop("app.kubernetes.io/managed-by", None)
        if each["kind"] == "Deployment":
            each["spec"]["template"]["spec"]["containers"][0]["env"].sort(key=lambda entry: entry["name"])
        found[each["kind"], each["metadata"]["name"]] = each
    return found


def _environment(objects: list[Object]) -> dict[str, str]:
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


@pytest.mark.parametrize(
    ("name", "values", "namespace"),
    [("overlays/production", PRODUCTION, "inference"), ("overlays/dev", DEV, "inference-dev")],
)
def test_chart_renders_what_kustomize_does(name: str, values: dict[str, Any], namespace: str) -> None:
    """Whichever of the two somebody uses, the objects are the same, field by field."""
    rendered, expected = _by_name(chart(values, namespace=namespace)), _by_name(overlay(name))
    assert rendered.keys() == expected.keys()
    for key, each in expected.items():
        assert rendered[key] == each


def test_defaults_are_those_of_the_base() -> None:
    """Without a value, what runs is the base; the chart's release is the package's."""
    rendered, expected = _by_name(chart({"image": {"tag": "0.1.0"}})), _by_name(overlay("base"))
    for (kind, name), each in expected.items():
        each["metadata"]["namespace"] = "inference"
        assert rendered[kind, name] == each
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{about["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()


def test_discovery_is_that_of_its_component() -> None:
    """The role, its binding and the token, which nobody has without asking for them."""
    values = {"image": {"tag": "0.1.0"}, "serviceDiscovery": True}
    rendered, expected = _by_name(chart(values)), _by_name(with_component("discovery"))
    for key, each in expected.items():
        assert rendered[key] == each


def test_two_releases_in_one_namespace_have_nothing_in_common() -> None:
    """As of two overlays: no name and no selector matches the other release's."""
    first, second = chart(PRODUCTION, name="chat.v1"), chart({}, name="embed-router")
    assert not _by_name(first).keys() & _by_name(second).keys()
    assert one(first, "Service")["metadata"]["name"] == "chat-v1-router"
    labels = one(first, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not one(second, "Service")["spec"]["selector"].items() <= labels.items()
    query = one(first, "ScaledObject", name="router")["spec"]["triggers"][0]["metadata"]["query"]
    assert 'deployment="chat-v1-router"' in query


def test_long_release_names_leave_room_for_the_pods() -> None:
    """Helm allows 53 characters. A Deployment of more than 52 would have pods whose names are cut."""
    releases = ("a" * 53, "router-" + "a" * 46, "a" * 44 + "-" + "b" * 8)
    for objects in charts(*(({}, name, "inference") for name in releases)):
        assert not isinstance(objects, NotRendered)
        (name,) = {each["metadata"]["name"] for each in objects}
        assert len(name) <= 52
        assert "-router" in name or name.startswith("router-")
        assert "--" not in name


def test_target_follows_from_the_cap() -> None:
    """One value moves both the cap and what the autoscaler aims at, which is never 0."""
    cases = [(10, 70, "7"), (64, 70, "44"), (1, 70, "1"), (3, 100, "3")]
    values = [{"maxConcurrency": cap, "autoscaling": {"targetPercent": percent}} for cap, percent, _ in cases]
    rendered = charts(*((each, "router", "inference") for each in values))
    for (cap, _, target), objects in zip(cases, rendered, strict=True):
        assert not isinstance(objects, NotRendered)
        assert _environment(objects)["MAX_CONCURRENCY"] == str(cap)
        assert one(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]["threshold"] == target


def test_prometheus_finds_the_monitor_by_labels() -> None:
    """Many a Prometheus selects PodMonitors by a label, and scrapes nothing that lacks it."""
    metadata = one(chart({"podMonitorLabels": {"release": "prometheus"}}), "PodMonitor")["metadata"]
    assert metadata["labels"]["release"] == "prometheus"
    assert metadata["labels"]["app.kubernetes.io/instance"] == "router"


def test_without_an_autoscaler_the_number_of_pods_is_fixed() -> None:
    """Only then does the chart write `replicas`."""
    objects = chart({"autoscaling": {"class": "none", "minReplicas": 5}})
    assert one(objects, "Deployment")["spec"]["replicas"] == 5
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & {each["kind"] for each in objects}


def test_environment_is_understood_by_the_application() -> None:
    """Variables, routes and times of the values reach the container as settings that load."""
    values = {"env": {"QUEUE_SIZE": "5"}, "gracefulTimeoutS": 120, "preStopS": 15, "routes": "x", "maxBodyBytes": 10**7}
    objects = chart(values)
    environment = _environment(objects)
    assert environment.keys() <= {field.name.upper() for field in msgspec.structs.fields(Settings)}
    settings = load_settings(environment, cpus=1)
    assert (settings.queue_size, settings.graceful_timeout_s, settings.max_body_bytes) == (5, 120, 10**7)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120 + 15 + 10
    assert pod["volumes"] == [{"name": "routes", "configMap": {"name": "router"}}]
    assert one(objects, "ConfigMap")["data"] == {"routes.toml": "x"}


def test_keys_and_certificates_of_the_guide_are_mounted() -> None:
    """The values that docs/kubernetes.md shows: every file lies in a mounted Secret, and Prometheus has the key."""
    guide = (ROOT / "docs/kubernetes.md").read_text().partition("## Keys and certificates")[2]
    values = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[0])
    objects = chart(values)
    environment = _environment(objects)
    load_settings(environment, cpus=1)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    secrets = {volume["name"] for volume in pod["volumes"] if volume.get("secret")}
    for name in ("KEYS_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE"):
        assert mounted[str(Path(environment[name]).parent)] in secrets
    (endpoint,) = one(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == values["podMonitorAuthorization"]


def test_values_that_make_no_sense_are_refused() -> None:
    """Nothing is installed, and the message names the value."""
    refused: dict[str, dict[str, Any]] = {
        "maxConcurency": {"maxConcurency": 5},
        "/maxConcurrency": {"maxConcurrency": 0},
        "/maxConcurrency'": {"maxConcurrency": "10"},
        "/autoscaling/class": {"autoscaling": {"class": "knative"}},
        "autoscaling.minReplicas": {"autoscaling": {"minReplicas": 4, "maxReplicas": 3}},
        "MAX_CONCURRENCY": {"env": {"MAX_CONCURRENCY": "5"}},
        "/env/QUEUE_SIZE": {"env": {"QUEUE_SIZE": 5}},
        "/image/digest": {"image": {"digest": "latest"}},
        "/memory": {"memory": "lots"},
        "/modelServers/0": {"modelServers": [{"deployment": "llama"}]},
        "hostNetwork": {"podSpec": {"hostNetwork": True}},
        "/volumeMounts/0": {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}]},
    }
    for place, result in zip(refused, charts(*((each, "a", "b") for each in refused.values())), strict=True):
        assert isinstance(result, NotRendered), place
        assert place in str(result)


def test_every_value_has_a_schema() -> None:
    """A value that the schema doesn't list would be refused as unknown."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() - {"global"} == values.keys()
