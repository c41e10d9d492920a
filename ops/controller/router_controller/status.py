"""The status of a resource, from what is known of its objects. Pure, but for the time, which is passed in."""

from dataclasses import dataclass

from router_controller.errors import ApiFailure, Conflict
from router_controller.kinds import Kind, Object
from router_controller.plan import min_replicas

Failure = ApiFailure | Conflict
Failures = list[tuple[Kind, Failure]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a status is made of. `failures`: what could not be written, and why."""

    deployment: Object | None
    autoscaler: Object | None
    scaled_object: Object | None
    failures: Failures


def status_of(resource: Object, observed: Observed, now: str) -> Object:
    """Returns the status. A condition keeps the time of its last transition: equal states give equal objects."""
    metadata, spec = resource["metadata"], resource["spec"]
    deployed = (observed.deployment or {}).get("status") or {}
    old = {condition["type"]: condition for condition in (resource.get("status") or {}).get("conditions") or []}
    conditions = []
    for name, (state, reason, message) in {
        "Ready": _ready(spec, observed),
        "Progressing": _progressing(observed),
        "AutoscalingActive": _autoscaling(spec, observed),
        "Reconciled": _reconciled(observed),
    }.items():
        before = old.get(name, {})
        same = before.get("status") == state and "lastTransitionTime" in before
        conditions.append(
            {
                "type": name,
                "status": state,
                "reason": reason,
                "message": message[:1024],
                "observedGeneration": metadata["generation"],
                "lastTransitionTime": before["lastTransitionTime"] if same else now,
            }
        )
    return {
        "observedGeneration": metadata["generation"],
        "url": f"http://{metadata['name']}.{metadata['namespace']}.svc",
        "replicas": deployed.get("replicas", 0),
        "readyReplicas": deployed.get("readyReplicas", 0),
        "conditions": conditions,
    }


def explain(kind: Kind, failure: Failure) -> str:
    """Returns a failure in one line, in the API server's own words."""
    return f"{kind.name}: {failure}"


State = tuple[str, str, str]
"""Status, reason and message of a condition."""


def _ready(spec: Object, observed: Observed) -> State:
    """A router is ready while one of its pods serves: an autoscaler that adds a pod takes nothing away."""
    for kind, failure in observed.failures:
        if isinstance(failure, Conflict):
            return "False", "Conflict", explain(kind, failure)
    if observed.deployment is None:
        return "False", "NotDeployed", "there is no Deployment yet"
    available = (observed.deployment.get("status") or {}).get("availableReplicas", 0)
    if available:
        return "True", "Available", "the router serves"
    if min_replicas(spec) == 0 and observed.deployment["spec"].get("replicas") == 0:
        return "True", "ScaledToZero", "there is no load, and no pod"
    return "False", "NoPodAvailable", "no pod is ready"


def _progressing(observed: Observed) -> State:
    if observed.deployment is None:
        return "True", "Deploying", "there is no Deployment yet"
    spec, status = observed.deployment["spec"], observed.deployment.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return "False", "ProgressDeadlineExceeded", condition.get("message", "")
    asked, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
    behind = status.get("observedGeneration", 0) < observed.deployment["metadata"].get("generation", 0)
    if behind or updated < asked or status.get("replicas", 0) > updated or status.get("availableReplicas", 0) < updated:
        return "True", "RollingOut", "pods are being started or replaced"
    return "False", "Complete", "all pods are up to date"


def _autoscaling(spec: Object, observed: Observed) -> State:
    scaler = spec.get("autoscalerClass", "hpa")
    if scaler == "none":
        return "False", "Disabled", "autoscalerClass is none"
    if scaler == "external":
        return "Unknown", "External", "the controller does not see what scales the Deployment"
    made, name = (observed.autoscaler, "ScalingActive") if scaler == "hpa" else (observed.scaled_object, "Ready")
    if made is None:
        return "False", "NotDeployed", "there is no autoscaler yet"
    for condition in (made.get("status") or {}).get("conditions") or []:
        if condition.get("type") == name:
            reason = condition.get("reason") or "Unknown"
            return condition.get("status", "Unknown"), reason, condition.get("message", "")
    return "Unknown", "NotReported", "the autoscaler has not reported yet"


def _reconciled(observed: Observed) -> State:
    if not observed.failures:
        return "True", "Reconciled", "all objects are as planned"
    failure = observed.failures[0][1]
    reason = "Conflict" if isinstance(failure, Conflict) else failure.reason
    return "False", reason, "; ".join(explain(kind, failure) for kind, failure in observed.failures)
