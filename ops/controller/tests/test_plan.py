"""The plan: a spec in, objects out."""

import json
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import resource
from schemas import errors, foreign_schema

from app.config.routes_file import parse_routes
from router_controller.compare import as_planned
from router_controller.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    POD_MONITOR,
    SCALED_OBJECT,
    SERVICE,
    Kind,
    Object,
)
from router_controller.plan import Defaults, plan

MODEL = {"name": "m", "protocol": "openai", "endpoints": ["http://a:8000"]}


def planned(**spec: Any) -> dict[Kind, Object]:
    """Returns the objects of a resource."""
    item = resource(**spec)
    item["metadata"]["uid"] = "7c1e"
    return plan(item, Defaults())


def environment(objects: dict[Kind, Object]) -> dict[str, str]:
    """Returns the variables of the router."""
    (container,) = objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def routes(objects: dict[Kind, Object]) -> Any:
    """Returns the routes file."""
    return json.loads(objects[CONFIG_MAP]["data"]["routes.json"])


@pytest.mark.parametrize(
    ("spec", "variable", "value"),
    [
        ({}, "MAX_CONCURRENCY", "10"),
        ({"containerConcurrency": 25}, "MAX_CONCURRENCY", "25"),
        ({"model": MODEL}, "MODEL_REF", "m"),
        ({}, "ROUTES_FILE", "/etc/router/routes.json"),
        ({"kvEndpoints": ["redis://a:1", "b:2"]}, "KV_ENDPOINTS", "redis://a:1,b:2"),
        ({}, "KV_ENDPOINTS", None),
        ({}, "WEB_CONCURRENCY", "2"),
        ({"resources": {"requests": {"cpu": "3500m"}}}, "WEB_CONCURRENCY", "3"),
        ({"resources": {"requests": {"cpu": "500m"}}}, "WEB_CONCURRENCY", "1"),
        ({"resources": {"limits": {"cpu": 4}}}, "WEB_CONCURRENCY", "4"),
        ({"env": [{"name": "ACCESS_LOG", "value": "all"}]}, "ACCESS_LOG", "all"),
        ({"env": [{"name": "MAX_BODY_BYTES", "value": "9"}]}, "MAX_BODY_BYTES", "9"),
    ],
)
def test_environment(spec: dict[str, Any], variable: str, value: str | None) -> None:
    """Members become the router's settings."""
    assert environment(planned(**spec)).get(variable) == value


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ({}, "7"),
        ({"containerConcurrency": 1}, "1"),
        ({"containerConcurrency": 100}, "70"),
        ({"containerConcurrency": 100, "scaleTarget": 90}, "90"),
    ],
)
def test_scale_target_is_seventy_percent_of_the_cap(spec: dict[str, Any], target: str) -> None:
    """And at least 1, if it isn't given; for both autoscalers."""
    for metric in planned(**spec)[AUTOSCALER]["spec"]["metrics"]:
        assert (metric.get("object") or metric["pods"])["target"]["averageValue"] == target
    (trigger,) = planned(**spec, autoscalerClass="keda")[SCALED_OBJECT]["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == target


@pytest.mark.parametrize(
    ("scaler", "kind", "replicas"),
    [("hpa", AUTOSCALER, None), ("keda", SCALED_OBJECT, None), ("external", None, None), ("none", None, 3)],
)
def test_replicas_belong_to_the_autoscaler(scaler: str, kind: Kind | None, replicas: int | None) -> None:
    """The number of pods is written only where nothing else owns it."""
    objects = planned(autoscalerClass=scaler, minReplicas=3)
    assert objects[DEPLOYMENT]["spec"].get("replicas") == replicas
    assert {AUTOSCALER, SCALED_OBJECT} & objects.keys() == ({kind} if kind else set())


@pytest.mark.parametrize(
    ("spec", "models"),
    [
        ({"model": MODEL}, [MODEL]),
        ({"model": MODEL, "timeout": 60}, [MODEL | {"timeouts": {"total_s": 60}}]),
        (
            {"model": {"name": "m", "protocol": "v2", "dns": "a.b:1"}},
            [{"name": "m", "protocol": "v2", "dns": "a.b:1"}],
        ),
        (
            {"model": {"name": "m", "service": {"name": "s", "port": 8000}}},
            [{"name": "m", "protocol": "openai", "service": "inference/s", "port": "8000"}],
        ),
        (
            {"model": MODEL, "canary": {"name": "m2", "dns": "c:1"}, "canaryTrafficPercent": 5},
            [
                {
                    "name": "m",
                    "protocol": "openai",
                    "versions": [
                        {"name": "stable", "weight": 95, "endpoints": ["http://a:8000"]},
                        {"name": "canary", "weight": 5, "dns": "c:1", "upstream_model": "m2"},
                    ],
                }
            ],
        ),
        ({"model": {"name": "m"}, "routes": {"models": ["as", "given"]}}, ["as", "given"]),
    ],
)
def test_routes(spec: dict[str, Any], models: list[Any]) -> None:
    """Model and canary become the routes file, and `routes` stands for itself."""
    assert routes(planned(**spec)) == {"models": models}


@pytest.mark.parametrize("timeout", [1, 600])
def test_routes_are_what_the_router_reads(timeout: int) -> None:
    """The router takes the file, with a canary and any timeout too."""
    canary = {"endpoints": ["http://b:8000"]}
    text = planned(canary=canary, canaryTrafficPercent=5, timeout=timeout)[CONFIG_MAP]["data"]["routes.json"]
    (model,) = parse_routes(text, "routes.json").models
    assert [(version.name, version.weight) for version in model.versions] == [("stable", 95), ("canary", 5)]
    assert model.timeouts.total_s == timeout


@pytest.mark.parametrize(("drain_s", "grace_s"), [("600", 620), ("x", 50), ("inf", 50), ("nan", 50)])
def test_pods_have_time_to_drain(drain_s: str, grace_s: int) -> None:
    """A longer drain makes the grace period longer by as much. One that the router rejects is left to the router."""
    pod = planned(env=[{"name": "GRACEFUL_TIMEOUT_S", "value": drain_s}])[DEPLOYMENT]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == grace_s


def test_a_token_is_mounted_only_to_discover() -> None:
    """The router calls the Kubernetes API for the endpoints of a Service only."""

    def mounts(**spec: Any) -> bool:
        return bool(planned(**spec)[DEPLOYMENT]["spec"]["template"]["spec"]["automountServiceAccountToken"])

    service = {"name": "s", "port": 80}
    assert not mounts()
    assert mounts(model={"name": "m", "service": service})
    assert mounts(canary={"service": service})
    assert mounts(model={"name": "m"}, routes={"models": [{"versions": [{"service": "a/b"}]}]})


def test_two_resources_share_no_selector() -> None:
    """What selects the pods of one selects none of the other."""
    one, other = (plan(resource(name) | {"metadata": _metadata(name)}, Defaults()) for name in ("one", "other"))
    labels = other[DEPLOYMENT]["spec"]["template"]["metadata"]["labels"]
    for kind, item in one.items():
        selector = item.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            assert not wanted.items() <= labels.items(), kind


def _metadata(name: str) -> Object:
    return {"name": name, "namespace": "inference", "uid": name}


def test_another_strategy_replaces_ours() -> None:
    """What isn't given of a rolling update is ours, and Recreate has no part of it."""
    strategy = {"rollingUpdate": {"maxSurge": 1}}
    assert planned(deploymentStrategy=strategy)[DEPLOYMENT]["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    recreate = planned(deploymentStrategy={"type": "Recreate"})[DEPLOYMENT]["spec"]["strategy"]
    assert recreate == {"type": "Recreate"}


labels = st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True))
specs = st.fixed_dictionaries(
    {},
    optional={
        "containerConcurrency": st.integers(1, 10**6),
        "minReplicas": st.integers(1, 10),
        "maxReplicas": st.integers(10, 100),
        "scaleMetric": st.sampled_from(["demand", "concurrency"]),
        "autoscalerClass": st.sampled_from(["hpa", "keda", "external", "none"]),
        "kvEndpoints": st.lists(st.from_regex(r"[a-z]{1,9}:[1-9]", fullmatch=True)),
        "labels": labels,
        "annotations": labels,
        "timeout": st.integers(1, 86400),
        "canary": st.just({"endpoints": ["http://b:1"]}),
        "canaryTrafficPercent": st.integers(0, 100),
        "resources": st.sampled_from([{}, {"requests": {"cpu": "500m", "memory": "1Gi"}}, {"limits": {"cpu": 2}}]),
        "deploymentStrategy": st.sampled_from([{"type": "Recreate"}, {"rollingUpdate": {"maxSurge": 3}}]),
    },
)


@settings(max_examples=10, deadline=None)
@given(specs)
def test_every_plan_fits_the_schemas(spec: dict[str, Any]) -> None:
    """Whatever the spec, Kubernetes takes every object: no field is unknown or of a wrong type."""
    for kind, item in planned(**spec).items():
        if not kind.optional:
            kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


@settings(max_examples=10, deadline=None)
@given(specs)
def test_a_plan_is_a_function_of_the_spec(spec: dict[str, Any]) -> None:
    """Equal specs give equal objects, and an object that is as planned needs no write."""
    objects = planned(**spec)
    assert objects == planned(**spec)
    assert all(as_planned(item, item) for item in objects.values())
    weights = [version["weight"] for model in routes(objects)["models"] for version in model.get("versions", [])]
    assert sum(weights) in {0, 100}
    assert (
        objects[SERVICE]["spec"]["selector"].items()
        <= objects[DEPLOYMENT]["spec"]["template"]["metadata"]["labels"].items()
    )


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("metric", ["demand", "concurrency"])
def test_objects_of_other_projects_fit_their_crds(metric: str, least: int) -> None:
    """PodMonitor and ScaledObject against the schemas and rules of the projects that serve them."""
    objects = planned(autoscalerClass="keda", scaleMetric=metric, minReplicas=least)
    assert errors(foreign_schema("podmonitors.yaml", "PodMonitor"), objects[POD_MONITOR]) == []
    assert errors(foreign_schema("scaledobjects.yaml", "ScaledObject"), objects[SCALED_OBJECT]) == []
