"""The status: what each condition says, and that equal states give equal objects."""

from typing import Any

import pytest
from running import resource

from router_controller.errors import ApiFailure, Conflict
from router_controller.kinds import DEPLOYMENT, SERVICE, Object
from router_controller.status import Observed, status_of

FULL = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": 1}


def observed(status: Object | None = None, replicas: int = 2, **rest: Any) -> Observed:
    """Returns what is known of a Deployment with this status."""
    deployment = None if status is None else {"metadata": {"generation": 1}, "spec": {"replicas": replicas}}
    if deployment is not None:
        deployment["status"] = status  # type: ignore[assignment]
    return Observed(deployment, rest.get("autoscaler"), rest.get("scaled_object"), rest.get("failures", []))


def conditions(seen: Observed, **spec: Any) -> dict[str, tuple[str, str]]:
    """Returns status and reason of each condition."""
    item = resource(**spec)
    item["metadata"]["generation"] = 1
    status = status_of(item, seen, "now")
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        (observed(None), ("False", "NotDeployed")),
        (observed({}), ("False", "NoPodAvailable")),
        (observed(FULL), ("True", "Available")),
        (observed(FULL, replicas=9), ("True", "Available")),  # the autoscaler has just added pods
        (observed(FULL | {"availableReplicas": 1}), ("True", "Available")),  # a node is drained
        (observed({}, replicas=0), ("False", "NoPodAvailable")),
        (observed(FULL, failures=[(SERVICE, Conflict("theirs"))]), ("False", "Conflict")),
        (observed(FULL, failures=[(SERVICE, ApiFailure(500, "InternalError", "x"))]), ("True", "Available")),
    ],
)
def test_ready_while_a_pod_serves(seen: Observed, ready: tuple[str, str]) -> None:
    """More pods that are asked for take nothing away."""
    assert conditions(seen)["Ready"] == ready


def test_ready_without_pods_if_none_are_wanted() -> None:
    """Scaled to zero is a state to be in, if the spec allows it."""
    assert conditions(observed({}, replicas=0), minReplicas=0)["Ready"] == ("True", "ScaledToZero")


@pytest.mark.parametrize(
    ("status", "replicas", "progressing"),
    [
        (FULL, 2, ("False", "Complete")),
        (FULL, 3, ("True", "RollingOut")),
        (FULL | {"updatedReplicas": 1}, 2, ("True", "RollingOut")),
        (FULL | {"observedGeneration": 0}, 2, ("True", "RollingOut")),
        (
            FULL | {"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]},
            2,
            ("False", "ProgressDeadlineExceeded"),
        ),
    ],
)
def test_progressing_while_pods_are_replaced(status: Object, replicas: int, progressing: tuple[str, str]) -> None:
    """Until all are of the newest template, or the deadline is over."""
    assert conditions(observed(status, replicas))["Progressing"] == progressing


@pytest.mark.parametrize(
    ("spec", "seen", "active"),
    [
        ({"autoscalerClass": "none"}, {}, ("False", "Disabled")),
        ({"autoscalerClass": "external"}, {}, ("Unknown", "External")),
        ({}, {}, ("False", "NotDeployed")),
        ({}, {"autoscaler": {}}, ("Unknown", "NotReported")),
        (
            {},
            {"autoscaler": {"status": {"conditions": [{"type": "ScalingActive", "status": "False", "reason": "X"}]}}},
            ("False", "X"),
        ),
        (
            {"autoscalerClass": "keda"},
            {"scaled_object": {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Y"}]}}},
            ("True", "Y"),
        ),
    ],
)
def test_autoscaling_is_told_in_the_autoscalers_words(spec: Object, seen: Any, active: tuple[str, str]) -> None:
    """Its own condition, or why there is none."""
    assert conditions(observed(FULL, **seen), **spec)["AutoscalingActive"] == active


def test_reconciled_has_the_api_servers_words() -> None:
    """Whoever reads the status needs no log."""
    item = resource()
    item["metadata"]["generation"] = 3
    seen = observed(FULL, failures=[(DEPLOYMENT, ApiFailure(422, "Invalid", "spec.replicas: must be positive"))])
    (found,) = (each for each in status_of(item, seen, "now")["conditions"] if each["type"] == "Reconciled")
    assert (found["status"], found["reason"]) == ("False", "Invalid")
    assert found["message"] == "Deployment: spec.replicas: must be positive"
    assert found["observedGeneration"] == 3


def test_equal_states_give_equal_objects() -> None:
    """Only a condition that turns gets a new time, or the status would be written for ever."""
    item = resource()
    item["metadata"]["generation"] = 1
    item["status"] = status_of(item, observed({}), "then")
    assert status_of(item, observed({}), "now") == item["status"]
    times = {each["type"]: each["lastTransitionTime"] for each in status_of(item, observed(FULL), "now")["conditions"]}
    assert times == {"Ready": "now", "Progressing": "now", "AutoscalingActive": "then", "Reconciled": "then"}
