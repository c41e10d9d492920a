"""The kinds that the controller works with, and where the API server serves them."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object, as its JSON."""

Key = tuple[str, str]
"""Namespace and name."""

GROUP = "inference-router.io"
MANAGER = "inference-router-controller"
"""The field manager of all writes, and the value of the label `app.kubernetes.io/managed-by`."""

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of namespaced object. `optional`: its CRD may be missing. `deletable`: a change of the spec may end it."""

    api_version: str
    name: str
    plural: str
    optional: bool = False
    deletable: bool = False

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Returns the path of an object, or of all in a namespace, or (None) in all namespaces."""
        parts = ["/api" if self.api_version == "v1" else "/apis", self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        return "/".join(parts if name is None else [*parts, name])


INFERENCE_SERVICE = Kind(f"{GROUP}/v1alpha1", "InferenceService", "inferenceservices")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
SERVICE = Kind("v1", "Service", "services")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", deletable=True)
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", deletable=True)
SCALED_OBJECT = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", optional=True, deletable=True)
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", optional=True, deletable=True)
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

CHILDREN = (
    SERVICE_ACCOUNT,
    SERVICE,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    AUTOSCALER,
    SCALED_OBJECT,
    POD_MONITOR,
)
"""In the order in which they are applied: what a pod mounts or runs as comes before the Deployment."""


def key_of(item: Object) -> Key:
    """Returns namespace and name of an object."""
    return item["metadata"]["namespace"], item["metadata"]["name"]
