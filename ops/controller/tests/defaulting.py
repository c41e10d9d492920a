"""What an API server fills in and rewrites when it stores an object: what a careless comparison would trip over."""

import copy
from typing import Any

Object = dict[str, Any]


def with_defaults(plural: str, item: Object) -> Object:
    """Returns the object as it would be stored."""
    item = copy.deepcopy(item)
    spec = item.get("spec") or {}
    if plural == "deployments":
        spec.setdefault("replicas", 1)
        spec.setdefault("progressDeadlineSeconds", 600)
        pod = spec["template"]["spec"]
        pod.setdefault("restartPolicy", "Always")
        pod.setdefault("dnsPolicy", "ClusterFirst")
        for volume in pod.get("volumes", []):
            if "configMap" in volume:
                volume["configMap"].setdefault("defaultMode", 420)
        for container in pod["containers"]:
            _container(container)
    elif plural == "services":
        spec.setdefault("clusterIP", "10.0.0.1")
        for port in spec["ports"]:
            port.setdefault("protocol", "TCP")
    elif plural == "horizontalpodautoscalers":
        spec["behavior"]["scaleDown"].setdefault("selectPolicy", "Max")
    elif plural == "inferenceservices":
        for name, value in {"minReplicas": 2, "maxReplicas": 20, "containerConcurrency": 10}.items():
            spec.setdefault(name, value)
        spec.setdefault("autoscalerClass", "hpa")
        spec.setdefault("scaleMetric", "demand")
    return item


def _container(container: Object) -> None:
    container.setdefault("imagePullPolicy", "IfNotPresent")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    for port in container.get("ports", []):
        port.setdefault("protocol", "TCP")
    for entry in container.get("env", []):
        if entry.get("value") == "":
            del entry["value"]  # empty texts are not stored
    for amounts in container.get("resources", {}).values():
        for name, amount in amounts.items():
            if amount.endswith("000m"):
                amounts[name] = amount.removesuffix("000m")  # quantities are stored in their shortest form
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe in container:
            container[probe].setdefault("successThreshold", 1)
            container[probe]["httpGet"].setdefault("scheme", "HTTP")
