"""The objects of a router, as `ops/k8s` has them.

What the two have in common is compared by tests/test_same_as_kustomize.py, which names every difference. `name` is the
name of all objects, and the value of the label that tells one router's pods from another's.
"""

from router_controller.kinds import INSTANCE_LABEL, NAME_LABEL, Object

ROUTES_FOLDER = "/etc/router"
PRE_STOP_S = 10
RESERVE_S = 10
"""Between the end of GRACEFUL_TIMEOUT_S and SIGKILL, in seconds."""


def selector(name: str) -> dict[str, str]:
    """Returns the labels that only the pods of this router have."""
    return {NAME_LABEL: "router", INSTANCE_LABEL: name}


def service_account() -> Object:
    """An identity of the router's own, with no rights."""
    return {"automountServiceAccountToken": False}


def service(name: str) -> Object:
    """The admin port is left out on purpose: /metrics is for the scraper, which asks each pod."""
    ports = [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}]
    return {"spec": {"selector": selector(name), "ports": ports}}


def disruption_budget(name: str) -> Object:
    """A drain takes a quarter of the pods at a time, and never waits for a pod that is broken anyway."""
    return {
        "spec": {
            "maxUnavailable": "25%",
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(name)},
        }
    }


def pod_monitor(name: str) -> Object:
    """The label `deployment`, by which the autoscalers find the router, is the ReplicaSet's name less its hash."""
    relabeling = {
        "sourceLabels": ["__meta_kubernetes_pod_controller_name"],
        "regex": "(.+)-[a-z0-9]+",
        "targetLabel": "deployment",
    }
    endpoint = {"port": "admin", "path": "/metrics", "interval": "15s", "relabelings": [relabeling]}
    return {"spec": {"selector": {"matchLabels": selector(name)}, "podMetricsEndpoints": [endpoint]}}


def target(name: str) -> Object:
    """What the autoscaler scales."""
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}


def scaling_behavior() -> Object:
    """Up at once; down to what the last 5 minutes could have done with, and a quarter a minute at most."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 4, "periodSeconds": 15},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Percent", "value": 25, "periodSeconds": 60}],
        },
    }


def deployment(name: str, pod: Object) -> Object:
    """The Deployment, without `replicas`: an autoscaler owns that number."""
    return {
        "spec": {
            "revisionHistoryLimit": 5,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
            "selector": {"matchLabels": selector(name)},
            "template": pod,
        }
    }


def pod(name: str, container: Object, graceful_timeout_s: int) -> Object:
    """The pods: unprivileged, without a token, spread over zones and nodes as far as there are any."""
    return {
        "metadata": {"labels": selector(name)},
        "spec": {
            "serviceAccountName": name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": PRE_STOP_S + graceful_timeout_s + RESERVE_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {
                    "topologyKey": key,
                    "maxSkew": 1,
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": selector(name)},
                    "matchLabelKeys": ["pod-template-hash"],
                }
                for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
            "containers": [container],
            "volumes": [{"name": "routes", "configMap": {"name": routes_name(name)}}],
        },
    }


def container(image: str, environment: list[Object], resources: Object) -> Object:
    """The router. It writes in /dev/shm only, and its probes ask the admin port, which overload does not reach."""
    return {
        "name": "router",
        "image": image,
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}],
        "env": environment,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe("/healthz", 1, 1, 30),
        "livenessProbe": _probe("/healthz", 10, 3, 3),
        "readinessProbe": _probe("/readyz", 5, 2, 2),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "volumeMounts": [{"name": "routes", "mountPath": ROUTES_FOLDER, "readOnly": True}],
    }


def resources() -> Object:
    """No CPU limit: the workers can't use more than they request, and throttling would only add latency."""
    return {"requests": {"cpu": "2", "memory": "512Mi"}, "limits": {"memory": "512Mi"}}


def environment() -> dict[str, str]:
    """The settings that no member of the spec decides."""
    return {
        "BIND": "0.0.0.0:8080",
        "ADMIN_BIND": "0.0.0.0:9090",
        "MAX_BODY_BYTES": "1048576",
        "GRACEFUL_TIMEOUT_S": "30",
        "PROMETHEUS_MULTIPROC_DIR": "/dev/shm/router",  # noqa: S108  # the pod's own memory
    }


def pod_name() -> Object:
    """The variable POD_NAME. `apiVersion` is the default, written out: left out, it would always differ."""
    return {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}


def routes_name(name: str) -> str:
    """Returns the name of the ConfigMap with the routes."""
    return f"{name}-routes"


def _probe(path: str, period_s: int, timeout_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "admin"},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }
