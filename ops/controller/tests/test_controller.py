"""The controller as a process, from the outside: what it makes of a resource, and what survives."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_api import Cluster, until
from fake_server import FakeServer
from permissions import rules_of
from running import Running, resource

from router_controller.kinds import Object

pytestmark = pytest.mark.slow

KEY = ("inference", "llama")
CHILDREN = [
    "serviceaccounts",
    "services",
    "deployments",
    "poddisruptionbudgets",
    "horizontalpodautoscalers",
    "podmonitors",
]
Start = Callable[..., Running]


def condition(cluster: Cluster, name: str, key: tuple[str, str] = KEY) -> Object:
    """Returns a condition of a resource, or an empty one."""
    status = (cluster.get("inferenceservices", key) or {}).get("status") or {}
    return next((each for each in status.get("conditions", []) if each["type"] == name), {})


def deployed(server: FakeServer, **spec: Any) -> Object:
    """Make a resource, and wait for the last of its objects and its status. Returns its Deployment."""
    server.cluster.put("inferenceservices", resource(**spec))
    until(lambda: condition(server.cluster, "Reconciled").get("status") == "True", "reconciled")
    found = server.cluster.get("deployments", KEY)
    assert found
    return found


def serve(cluster: Cluster, replicas: int = 2) -> None:
    """Do what the Deployment's controller does when all pods are ready."""

    def ready(item: Object) -> None:
        item["status"] = {"observedGeneration": item["metadata"]["generation"]} | dict.fromkeys(
            ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), replicas
        )

    cluster.edit("deployments", KEY, ready, "kube-controller-manager")


def at_rest(server: FakeServer, seconds: float = 0.6) -> list[tuple[str, str]]:
    """Returns the writes in a time without changes, after as long a one. It is the time that proves: it is slept."""
    until(lambda: not _writes_within(server, seconds), "rest")
    return _writes_within(server, seconds)


def _writes_within(server: FakeServer, seconds: float) -> list[tuple[str, str]]:
    before = len(server.writes())
    time.sleep(seconds)
    return server.writes()[before:]


def container(cluster: Cluster) -> Object:
    """Returns the router's container."""
    found = cluster.get("deployments", KEY)
    assert found
    only: Object = found["spec"]["template"]["spec"]["containers"][0]
    return only


def test_a_resource_becomes_its_objects_and_then_nothing_is_written(server: FakeServer, start: Start) -> None:
    """All objects are there in seconds, owned by the resource; at rest the controller writes nothing."""
    start()
    until(lambda: server.cluster.get("leases", ("system", "inference-router-controller")), "a leader")
    begun = time.monotonic()
    server.cluster.put("inferenceservices", resource())
    until(lambda: condition(server.cluster, "Reconciled").get("status") == "True", "reconciled")
    assert time.monotonic() - begun < 10  # 0.3 s on an idle machine
    owner = server.cluster.get("inferenceservices", KEY)
    assert owner
    for plural in [*CHILDREN, "configmaps"]:
        (item,) = server.cluster.list(plural)
        (reference,) = item["metadata"]["ownerReferences"]
        assert (reference["uid"], reference["controller"]) == (owner["metadata"]["uid"], True)
        assert "finalizers" not in item["metadata"]
    assert condition(server.cluster, "Ready")["status"] == "False"
    serve(server.cluster)
    until(lambda: condition(server.cluster, "Ready")["status"] == "True", "ready")
    status = server.cluster.get("inferenceservices", KEY)["status"]  # type: ignore[index]
    assert (status["url"], status["replicas"], status["readyReplicas"]) == ("http://llama.inference.svc", 2, 2)
    assert at_rest(server) == []


def test_fifty_resources_rest_in_little_memory(server: FakeServer, start: Start) -> None:
    """With 50 resources nothing is written at rest, after a restart neither, and 60 MiB are enough."""
    for number in range(50):
        server.cluster.put("inferenceservices", resource(f"llama-{number}"))
    with start() as first:
        until(lambda: server.cluster.count("podmonitors") == 50, "all objects", 60)
        until(
            lambda: all(
                condition(server.cluster, "Reconciled", ("inference", f"llama-{number}")) for number in range(50)
            ),
            "all statuses",
        )
        assert at_rest(server) == []
        assert first.rss_mib() < 60
        assert first.terminate() == 0
    before = len(server.writes())
    second = start("controller-1")
    until(lambda: '"leading"' in second.log(), "a leader")
    until(lambda: "router_controller_resources 50.0" in second.get("/metrics")[1], "all resources seen")
    assert at_rest(server) == []
    assert server.writes()[before:] == []


def test_drift_is_repaired_and_what_others_own_survives(server: FakeServer, start: Start) -> None:
    """A changed field comes back at once; a restart's annotation, foreign variables and replicas stay."""
    start()
    deployed(server)

    def foreign(item: Object) -> None:
        pod = item["spec"]["template"]
        pod["metadata"]["annotations"] = {"kubectl.kubernetes.io/restartedAt": "now"}
        pod["spec"]["containers"][0]["env"].append({"name": "FOREIGN", "value": "1"})
        item["spec"]["replicas"] = 7

    server.cluster.edit("deployments", KEY, foreign)
    assert at_rest(server) == []
    server.cluster.edit(
        "deployments", KEY, lambda item: item["spec"]["template"]["spec"].update(serviceAccountName="x")
    )
    begun = time.monotonic()
    until(
        lambda: server.cluster.get("deployments", KEY)["spec"]["template"]["spec"]["serviceAccountName"] == "llama",  # type: ignore[index]
        "repaired",
    )
    assert time.monotonic() - begun < 10  # 0.1 s on an idle machine
    found = server.cluster.get("deployments", KEY)
    assert found
    assert found["spec"]["replicas"] == 7
    assert found["spec"]["template"]["metadata"]["annotations"] == {"kubectl.kubernetes.io/restartedAt": "now"}
    assert {"name": "FOREIGN", "value": "1"} in container(server.cluster)["env"]
    server.cluster.delete("services", KEY)
    until(lambda: server.cluster.get("services", KEY), "made again")
    server.cluster.edit("services", KEY, lambda item: item["metadata"].update(labels={}))
    until(lambda: server.cluster.get("services", KEY)["metadata"]["labels"], "labelled again")  # type: ignore[index]


def test_only_those_roll_that_must(server: FakeServer, start: Start) -> None:
    """A canary's share and a timeout change the routes only; the cap and the KV nodes change the pods."""
    start()
    canary = {"endpoints": ["http://canary:8000"]}
    before = deployed(server, canary=canary, canaryTrafficPercent=5)["spec"]["template"]

    def change(**spec: Any) -> None:
        server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(spec))

    def routes() -> str:
        return str(server.cluster.get("configmaps", ("inference", "llama-routes"))["data"]["routes.json"])  # type: ignore[index]

    change(canaryTrafficPercent=25, timeout=60)
    until(lambda: '"weight": 25' in routes() and '"total_s": 60' in routes(), "the routes")
    assert at_rest(server) == []
    after = server.cluster.get("deployments", KEY)
    assert after
    assert after["spec"]["template"] == before
    change(containerConcurrency=20, kvEndpoints=["redis://kv:6379"])
    until(lambda: {"name": "MAX_CONCURRENCY", "value": "20"} in container(server.cluster)["env"], "the cap")
    assert {"name": "KV_ENDPOINTS", "value": "redis://kv:6379"} in container(server.cluster)["env"]
    until(lambda: "'averageValue': '14'" in str(server.cluster.get("horizontalpodautoscalers", KEY)), "the target")
    change(kvEndpoints=[])
    until(lambda: "KV_ENDPOINTS" not in str(container(server.cluster)["env"]), "the variable that is gone")


def _without_labels_and_env(item: Object) -> None:
    del item["spec"]["labels"], item["spec"]["env"]


def test_a_field_that_goes_while_the_controller_is_down_is_removed(server: FakeServer, start: Start) -> None:
    """What is no longer planned is told from `managedFields`, not from memory."""
    with start() as first:
        deployed(server, labels={"team": "a"}, env=[{"name": "ACCESS_LOG", "value": "all"}])
        assert first.terminate() == 0
    server.cluster.edit("inferenceservices", KEY, _without_labels_and_env)
    start("controller-1")
    until(lambda: "ACCESS_LOG" not in str(container(server.cluster)["env"]), "the variable that is gone")
    found = server.cluster.get("deployments", KEY)
    assert found
    assert "team" not in found["metadata"]["labels"]


def test_an_object_of_somebody_else_is_never_taken_over(server: FakeServer, start: Start) -> None:
    """It stays as it is, the status says Conflict, and nothing that would act on it is made."""
    foreign = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "llama", "namespace": "inference"}}
    foreign["spec"] = {"template": {"spec": {"containers": [{"name": "theirs", "image": "theirs"}]}}}
    stored = server.cluster.put("deployments", foreign)
    start()
    server.cluster.put("inferenceservices", resource())
    until(lambda: condition(server.cluster, "Ready").get("reason") == "Conflict", "a conflict")
    assert condition(server.cluster, "Reconciled")["status"] == "False"
    assert server.cluster.get("deployments", KEY) == stored
    assert server.cluster.list("horizontalpodautoscalers") == []
    (event,) = until(lambda: server.cluster.list("events"), "an event")
    assert (event["type"], event["reason"], event["involvedObject"]["name"]) == ("Warning", "Conflict", "llama")
    server.cluster.delete("deployments", KEY)
    until(lambda: condition(server.cluster, "Reconciled")["status"] == "True", "the name is free", 30)


def test_an_autoscaler_takes_over_without_a_change_of_the_pods(server: FakeServer, start: Start) -> None:
    """From `none` to `hpa` the number of pods stays, until the autoscaler changes it; then it is the autoscaler's."""
    start()
    assert deployed(server, autoscalerClass="none", minReplicas=5)["spec"]["replicas"] == 5
    assert server.cluster.list("horizontalpodautoscalers") == []
    server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(autoscalerClass="hpa"))
    until(lambda: server.cluster.list("horizontalpodautoscalers"), "an autoscaler")
    assert at_rest(server) == []

    def replicas() -> int:
        return int(server.cluster.get("deployments", KEY)["spec"]["replicas"])  # type: ignore[index]

    assert replicas() == 5
    server.cluster.edit("deployments", KEY, lambda item: item["spec"].update(replicas=9), "kube-controller-manager")
    server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(containerConcurrency=30))
    until(lambda: "'30'" in str(container(server.cluster)["env"]), "the change")
    assert replicas() == 9


def test_another_autoscaler_replaces_the_first(server: FakeServer, start: Start) -> None:
    """With keda there is a ScaledObject and no HPA of ours; without KEDA the HPA stays, and the status says why."""
    server.cluster.absent = {"scaledobjects"}
    with start() as first:
        deployed(server)
        server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(autoscalerClass="keda"))
        until(lambda: condition(server.cluster, "Reconciled")["reason"] == "KindMissing", "KEDA is missed")
        assert server.cluster.list("horizontalpodautoscalers")
        assert first.terminate() == 0
    server.cluster.absent = set()
    start("controller-1")
    until(lambda: server.cluster.list("scaledobjects"), "a ScaledObject")
    until(lambda: not server.cluster.list("horizontalpodautoscalers"), "no HPA")
    assert at_rest(server) == []
    before = len(server.writes())
    server.cluster.edit("inferenceservices", KEY, lambda item: item["spec"].update(autoscalerClass="hpa"))
    until(lambda: server.cluster.list("horizontalpodautoscalers"), "an HPA")
    assert server.cluster.list("scaledobjects") == []
    touched = [method for method, path in server.writes()[before:] if "autoscalers" in path or "scaledobjects" in path]
    assert touched[0] == "DELETE"


def test_a_resource_that_is_deleted_while_the_controller_is_down_goes(server: FakeServer, start: Start) -> None:
    """No finalizer holds it, and the garbage collector finds all of its objects by their owner."""
    with start() as first:
        deployed(server)
        assert first.terminate() == 0
    server.cluster.delete("inferenceservices", KEY)
    server.cluster.collect()
    assert [server.cluster.list(plural) for plural in [*CHILDREN, "configmaps"]] == [[]] * 7
    second = start("controller-1")
    until(lambda: '"leading"' in second.log(), "a leader")
    assert at_rest(server) == []


def test_one_namespace_is_enough(server: FakeServer, start: Start) -> None:
    """With WATCH_NAMESPACE and the rights of a Role, that namespace is served and no other one is looked at."""
    server.rules = rules_of("one-namespace/role.yaml", "base/lease-role.yaml")
    server.cluster.put("inferenceservices", resource("other", "elsewhere"))
    start(WATCH_NAMESPACE="inference")
    deployed(server)
    assert server.cluster.get("deployments", ("elsewhere", "other")) is None
    watched = [path for method, path, _ in server.requests if method == "GET" and "/leases" not in path]
    assert all(re.search("/namespaces/inference/", path) for path in watched)
