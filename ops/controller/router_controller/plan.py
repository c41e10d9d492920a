"""What an InferenceService stands for: a spec in, objects out. Nothing here asks or tells anybody.

The spec is one that the API server has accepted: defaults are filled in, and the rules of the CRD hold.
"""

from dataclasses import dataclass
from typing import Any

from router_controller import templates
from router_controller.compare import quantity
from router_controller.kinds import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    INFERENCE_SERVICE,
    MANAGED_BY_LABEL,
    MANAGER,
    POD_MONITOR,
    SCALED_OBJECT,
    SERVICE,
    SERVICE_ACCOUNT,
    Kind,
    Object,
)
from router_controller.routes import discovers, routes_text

ROUTES_FILE = f"{templates.ROUTES_FOLDER}/routes.json"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the controller's own settings decide for all resources."""

    image: str = "router:0.1.0"
    prometheus_url: str = "http://prometheus-operated.monitoring:9090"


def plan(resource: Object, defaults: Defaults) -> dict[Kind, Object]:
    """Returns the objects of a resource, one of a kind."""
    name, namespace, spec = resource["metadata"]["name"], resource["metadata"]["namespace"], resource["spec"]
    bodies: dict[Kind, Object] = {
        SERVICE_ACCOUNT: templates.service_account(),
        SERVICE: templates.service(name),
        CONFIG_MAP: {"data": {"routes.json": routes_text(namespace, spec)}},
        DEPLOYMENT: _deployment(name, spec, defaults),
        DISRUPTION_BUDGET: templates.disruption_budget(name),
        POD_MONITOR: templates.pod_monitor(name),
    }
    scaler = spec.get("autoscalerClass", "hpa")
    if scaler == "hpa":
        bodies[AUTOSCALER] = _autoscaler(name, spec)
    elif scaler == "keda":
        bodies[SCALED_OBJECT] = _scaled_object(name, namespace, spec, defaults)
    return {kind: _with_head(kind, body, resource) for kind, body in bodies.items()}


def child_name(kind: Kind, name: str) -> str:
    """Returns the name of the object of this kind."""
    return templates.routes_name(name) if kind is CONFIG_MAP else name


def scale_target(spec: Object) -> int:
    """Returns the number of requests for each pod that the autoscaler aims at: 70 % of the cap, and at least 1."""
    return int(spec.get("scaleTarget") or max(1, concurrency(spec) * 7 // 10))


def concurrency(spec: Object) -> int:
    """Returns the cap of each pod."""
    return int(spec.get("containerConcurrency", 10))


def min_replicas(spec: Object) -> int:
    """Returns the least number of pods."""
    return int(spec.get("minReplicas", 2))


def _with_head(kind: Kind, body: Object, resource: Object) -> Object:
    name, namespace, spec = resource["metadata"]["name"], resource["metadata"]["namespace"], resource["spec"]
    metadata: Object = {
        "name": child_name(kind, name),
        "namespace": namespace,
        "labels": templates.selector(name) | {MANAGED_BY_LABEL: MANAGER},
        "ownerReferences": [
            {
                "apiVersion": INFERENCE_SERVICE.api_version,
                "kind": INFERENCE_SERVICE.name,
                "name": name,
                "uid": resource["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if kind is DEPLOYMENT:
        metadata["labels"] = spec.get("labels", {}) | metadata["labels"]
        if spec.get("annotations"):
            metadata["annotations"] = spec["annotations"]
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata} | body


def _deployment(name: str, spec: Object, defaults: Defaults) -> Object:
    resources = _resources(spec)
    environment = _environment(spec, resources)
    container = templates.container(spec.get("image", defaults.image), environment, resources)
    pod = templates.pod(name, container, _graceful_timeout_s(environment))
    pod["metadata"]["labels"] = spec.get("labels", {}) | pod["metadata"]["labels"]
    if spec.get("annotations"):
        pod["metadata"]["annotations"] = spec["annotations"]
    if discovers(spec):
        pod["spec"]["automountServiceAccountToken"] = True
    body = templates.deployment(name, pod)
    if "deploymentStrategy" in spec:
        body["spec"]["strategy"] = _strategy(spec["deploymentStrategy"])
    if spec.get("autoscalerClass") == "none":
        body["spec"]["replicas"] = min_replicas(spec)
    return body


def _strategy(given: Object) -> Object:
    # What isn't given is written out: the API server would fill in its own defaults, which are not ours.
    kind = given.get("type", "RollingUpdate")
    if kind == "Recreate":
        return {"type": kind}
    return {"type": kind, "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"} | given.get("rollingUpdate", {})}


def _resources(spec: Object) -> Object:
    given = spec.get("resources")
    if not given:
        return templates.resources()
    return {
        name: {resource: str(amount) for resource, amount in amounts.items()}
        for name, amounts in given.items()
        if amounts
    }


def _environment(spec: Object, resources: Object) -> list[Object]:
    values = templates.environment() | {
        "MAX_CONCURRENCY": str(concurrency(spec)),
        "WEB_CONCURRENCY": str(_workers(resources)),
        "MODEL_REF": spec["model"]["name"],
        "ROUTES_FILE": ROUTES_FILE,
    }
    if spec.get("kvEndpoints"):
        values["KV_ENDPOINTS"] = ",".join(spec["kvEndpoints"])
    entries = {"POD_NAME": templates.pod_name()}
    entries |= {name: {"name": name, "value": value} for name, value in values.items()}
    entries |= {entry["name"]: entry for entry in spec.get("env", [])}
    return list(entries.values())


def _workers(resources: Object) -> int:
    """Returns the number of worker processes: as many as whole CPUs are requested. A limit stands in for a request."""
    for name in ("requests", "limits"):
        cpus = quantity(resources.get(name, {}).get("cpu"))
        if cpus is not None:
            return min(max(int(cpus), 1), 32)
    return 2


def _graceful_timeout_s(environment: list[Object]) -> int:
    (entry,) = (entry for entry in environment if entry["name"] == "GRACEFUL_TIMEOUT_S")
    try:
        return max(int(float(entry["value"])), 1)
    except (KeyError, ValueError, OverflowError):  # it comes from elsewhere, or the router will reject it
        return 30


def _autoscaler(name: str, spec: Object) -> Object:
    goal = {"type": "AverageValue", "averageValue": str(scale_target(spec))}
    demand = {
        "type": "Object",
        "object": {
            "metric": {"name": "router_demand_requests"},
            "describedObject": templates.target(name),
            "target": goal,
        },
    }
    held = {"type": "Pods", "pods": {"metric": {"name": "router_inflight_requests"}, "target": goal}}
    return {
        "spec": {
            "scaleTargetRef": templates.target(name),
            "minReplicas": min_replicas(spec),
            "maxReplicas": spec.get("maxReplicas", 20),
            "metrics": [held] if spec.get("scaleMetric") == "concurrency" else [demand, held],
            "behavior": templates.scaling_behavior(),
        }
    }


def _scaled_object(name: str, namespace: str, spec: Object, defaults: Defaults) -> Object:
    least = min_replicas(spec)
    labels = f'namespace="{namespace}",deployment="{name}"'
    if spec.get("scaleMetric") == "concurrency":
        query = f"sum(max by (pod) (router_inflight_requests{{{labels}}}))"
    else:
        query = f"sum(max by (pod, model) (router_demand_requests{{{labels}}}))"
    metadata: dict[str, Any] = {
        "serverAddress": defaults.prometheus_url,
        "query": query,
        "threshold": str(scale_target(spec)),
        # No series is no demand of 0, but a Prometheus that sees nothing; unless there may be no pod.
        "ignoreNullValues": "true" if least == 0 else "false",
    }
    return {
        "spec": {
            "scaleTargetRef": templates.target(name),
            "pollingInterval": 15,
            "minReplicaCount": least,
            "maxReplicaCount": spec.get("maxReplicas", 20),
            "fallback": {"failureThreshold": 3, "replicas": max(1, least), "behavior": "currentReplicasIfHigher"},
            "triggers": [
                {"type": "prometheus", "name": "demand", "metricType": "AverageValue", "metadata": metadata},
            ],
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": templates.scaling_behavior()}},
        }
    }
