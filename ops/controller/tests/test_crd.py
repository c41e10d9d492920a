"""The CRD: what the API server accepts, and the field that it names when it rejects.

The rules are evaluated by another implementation of CEL than the API server's; the cost limits are not checked.
"""

import re
from typing import Any

import pytest
import yaml
from running import resource
from schemas import CRD, OPS, errors, own_schema

from router_controller.kinds import DEPLOYMENT, INFERENCE_SERVICE
from router_controller.plan import Defaults, plan

MODEL = {"name": "m", "endpoints": ["http://a:8000"]}
OTHER = {"endpoints": ["http://b:8000"]}
LIMITS = {"requests": {"cpu": 2, "memory": "1Gi"}}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"model": MODEL | {"name": "org/m"}},
        {"model": MODEL | {"name": "/models/m"}},
        {"model": {"name": "m", "endpoints": ["https://a", "http://[::1]:8000/v1/"]}},
        {"model": {"name": "m", "dns": "_http._tcp.llama.models"}},
        {"model": {"name": "m", "service": {"name": "llama", "port": 8000}}},
        {"model": {"name": "m", "protocol": "v2", "dns": "llama.models:8000"}},
        {"model": {"name": "m", "service": {"name": "llama", "port": "http"}}},
        {"model": {"name": "m"}, "routes": {"models": [{"name": "m", "protocol": "simulated"}]}},
        {"canary": OTHER, "canaryTrafficPercent": 5, "timeout": 60, "kvEndpoints": ["redis://kv:6379"]},
        {"minReplicas": 0, "autoscalerClass": "keda"},
        {"minReplicas": 0, "autoscalerClass": "external"},
        {"scaleTarget": 10, "containerConcurrency": 10, "scaleMetric": "concurrency"},
        {"resources": LIMITS, "labels": {"team": "a"}, "annotations": {"note": "b"}},
        {"deploymentStrategy": {"type": "Recreate"}},
        {"deploymentStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": "10%"}}},
        {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
    ],
)
def test_good_resources_are_accepted(spec: dict[str, Any]) -> None:
    """Each member can be used, alone and with others."""
    assert errors(own_schema(), resource(**spec)) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"minReplicas": 3, "maxReplicas": 2}, "minReplicas"),
        ({"minReplicas": 0}, "minReplicas"),
        ({"minReplicas": 0, "autoscalerClass": "none"}, "minReplicas"),
        ({"minReplicas": -1}, "minReplicas"),
        ({"scaleTarget": 11}, "scaleTarget"),
        ({"scaleTarget": 0}, "scaleTarget"),
        ({"containerConcurrency": 0}, "containerConcurrency"),
        ({"canaryTrafficPercent": 5}, "canaryTrafficPercent"),
        ({"canaryTrafficPercent": 101, "canary": OTHER}, "canaryTrafficPercent"),
        ({"canary": {}}, "canary"),
        ({"model": {"name": "m"}}, "model"),
        ({"model": MODEL | {"dns": "a:1"}}, "model"),
        ({"model": {"endpoints": ["http://a:8000"]}}, "model"),
        ({"model": MODEL | {"protocol": "grpc"}}, "protocol"),
        ({"model": MODEL | {"name": "org/m", "protocol": "v2"}}, "model.name"),
        ({"model": MODEL | {"name": "a/../b"}}, "model.name"),
        ({"model": MODEL | {"name": "a/"}}, "model.name"),
        ({"model": {"name": "m", "endpoints": ["ftp://a"]}}, "endpoints"),
        ({"model": {"name": "m", "endpoints": []}}, "endpoints"),
        ({"model": {"name": "m", "endpoints": ["http://user:secret@a"]}}, "endpoints"),
        ({"model": {"name": "m", "endpoints": ["http://a/v1?x=1"]}}, "endpoints"),
        ({"model": {"name": "m", "dns": "llama.models"}}, "dns"),
        ({"model": {"name": "m", "dns": "_http._tcp.llama:80"}}, "dns"),
        ({"model": {"name": "m", "service": {"name": "s", "port": 0}}}, "port"),
        ({"model": {"name": "m", "service": {"name": "s", "port": 65536}}}, "port"),
        ({"model": {"name": "m", "service": {"name": "s", "port": "HTTP!"}}}, "port"),
        ({"canary": OTHER | {"name": ".."}}, "canary.name"),
        ({"routes": {"models": []}}, "routes"),
        ({"env": [{"name": "MAX_CONCURRENCY", "value": "1"}]}, "env"),
        ({"env": [{"name": "ROUTES_FILE", "value": "/x"}]}, "env"),
        ({"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}, "env"),
        ({"labels": {"app.kubernetes.io/instance": "x"}}, "labels"),
        ({"autoscalerClass": "vpa"}, "autoscalerClass"),
        ({"kvEndpoints": ["a,b"]}, "kvEndpoints"),
        ({"deploymentStrategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}, "deploymentStrategy"),
        ({"resources": {"requests": {"cpu": "many"}}}, "resources"),
        ({"timeout": 0}, "timeout"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_bad_resources_are_rejected_with_the_fields_name(spec: dict[str, Any], field: str) -> None:
    """There is one error, and it names the field."""
    (error,) = errors(own_schema(), resource(**spec))
    assert field in error


@pytest.mark.parametrize(("name", "good"), [("a" * 52, True), ("a" * 53, False), ("a.b", False), ("1a", False)])
def test_name_is_a_label_that_all_objects_can_have(name: str, good: bool) -> None:
    """A Service's name is stricter than that of other objects, and a Deployment's pods add to theirs."""
    assert (errors(own_schema(), resource(name)) == []) is good


def test_every_rule_names_its_field() -> None:
    """The message begins with the field, or has it among its words, since some errors have no path."""
    text = yaml.safe_dump(own_schema())
    rules = re.findall(r"message: (.+)", text)
    assert len(rules) >= 10
    crd = yaml.safe_load(CRD.read_text())
    assert (crd["spec"]["group"], crd["spec"]["scope"]) == (INFERENCE_SERVICE.api_version.split("/")[0], "Namespaced")
    assert "isvc" not in crd["spec"]["names"]["shortNames"]
    columns = [column["name"] for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]]
    assert columns == ["Model", "Ready", "Reason", "Replicas", "URL", "Age"]


def test_reserved_names_are_those_that_the_controller_sets() -> None:
    """Whoever set one of them in `env` would override the spec; GRACEFUL_TIMEOUT_S and MAX_BODY_BYTES may be set."""
    item = resource(kvEndpoints=["kv:1"])
    item["metadata"]["uid"] = "u"
    (container,) = plan(item, Defaults())[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
    names = {entry["name"] for entry in container["env"]} - {"GRACEFUL_TIMEOUT_S", "MAX_BODY_BYTES"}
    (rule,) = (
        rule["rule"]
        for rule in own_schema()["properties"]["spec"]["properties"]["env"]["items"]["x-kubernetes-validations"]
        if "self.name in" in rule["rule"]
    )
    assert set(re.findall(r"'([A-Z_]+)'", rule)) == names | {"BACKENDS", "BACKEND_PROTOCOL"}


def test_examples_are_accepted() -> None:
    """Every resource in the README can be applied."""
    blocks = re.findall(r"```yaml\n(.*?)```", (OPS / "controller/README.md").read_text(), re.DOTALL)
    items = [item for block in blocks for item in yaml.safe_load_all(block) if item["kind"] == INFERENCE_SERVICE.name]
    assert items
    assert [errors(own_schema(), item) for item in items] == [[]] * len(items)
