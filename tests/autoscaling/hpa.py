"""The decision of Kubernetes' HorizontalPodAutoscaler, as its documentation and its API reference describe it.

https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#algorithm-details and the fields of
`behavior` in autoscaling/v2. Where these leave a case open, it is decided as the controller does
(pkg/controller/podautoscaler: replica_calculator.go and horizontal.go of Kubernetes 1.37).
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor
from typing import Any, NamedTuple

TOLERANCE = 0.1
"""`--horizontal-pod-autoscaler-tolerance`: a ratio this near to 1 changes nothing."""


class Pod(NamedTuple):
    """What the autoscaler sees of a pod that is to stay."""

    pending: bool
    """Its container has not started yet."""
    value: float | None
    """Its metric; None if it has none."""


class Rules(NamedTuple):
    """One direction of `behavior`."""

    window_s: float
    policies: Sequence[tuple[str, int, float]]
    """Type, value and period in seconds."""


class Behavior(NamedTuple):
    """What a manifest says of how far and how fast."""

    minimum: int
    maximum: int
    up: Rules
    down: Rules


def behavior_of(minimum: int, maximum: int, behavior: Any) -> Behavior:
    """The member `behavior` of a manifest, which must say everything."""

    def rules(direction: str) -> Rules:
        given = behavior[direction]
        assert given.get("selectPolicy", "Max") == "Max"
        policies = [(policy["type"], policy["value"], policy["periodSeconds"]) for policy in given["policies"]]
        return Rules(given["stabilizationWindowSeconds"], policies)

    return Behavior(minimum, maximum, rules("scaleUp"), rules("scaleDown"))


def wanted_by_pods(current: int, pods: Sequence[Pod], target: float) -> int | None:
    """For a metric of type Pods: how many pods it asks for, or None if no pod has a value.

    Pods without a value are taken to be idle on the way up and full on the way down, pending ones to be idle on the way
    up, so that neither makes the autoscaler go too far. If they turn the direction round, nothing changes.
    """
    pending = [pod for pod in pods if pod.pending]
    values = [pod.value for pod in pods if not pod.pending and pod.value is not None]
    missing = len(pods) - len(pending) - len(values)
    if not values:
        return None
    ratio = sum(values) / len(values) / target
    assumed = [0.0] * (missing + len(pending)) if ratio > 1 else [target] * missing
    if not assumed:
        return current if _is_near(ratio) else ceil(ratio * len(values))
    known = values + assumed
    corrected = sum(known) / len(known) / target
    if _is_near(corrected) or (corrected > 1) != (ratio > 1):
        return current
    wanted = ceil(corrected * len(known))
    return current if (wanted > current) != (corrected > 1) else wanted


def wanted_by_total(current: int, total: float, target: float) -> int:
    """For a metric of type Object or External with an AverageValue. Pods that start play no part in it."""
    return current if _is_near(total / (target * current)) else ceil(total / target)


def _is_near(ratio: float) -> bool:
    return abs(1 - ratio) <= TOLERANCE


class Autoscaler:
    """Decides every so often, and remembers what `behavior` looks back at."""

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        self._recommended: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []

    def decide(self, now: float, current: int, wanted: Iterable[int | None]) -> int:
        """How many pods there shall be: the most that a metric asks for, within the windows, policies and bounds.

        A metric without a value (None) forbids to scale down.
        """
        wanted = list(wanted)
        known = [each for each in wanted if each is not None]
        most = max(known, default=current)
        if None in wanted and most < current:
            most = current
        stable = self._stabilized(now, current, most)
        decided = self._limited(now, current, stable)
        if decided != current:
            self._changes.append((now, decided - current))
        return decided

    def _stabilized(self, now: float, current: int, wanted: int) -> int:
        """No more than the least that was wanted in the window of scaling up, no less than the most in the other."""
        up, down = self._behavior.up, self._behavior.down
        least = min([wanted, *(each for at, each in self._recommended if at > now - up.window_s)])
        most = max([wanted, *(each for at, each in self._recommended if at > now - down.window_s)])
        self._recommended.append((now, wanted))
        return min(max(current, least), most)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        behavior = self._behavior
        if wanted > current:
            limit = max(current, *self._limits(now, current, behavior.up, 1))
            return min(wanted, limit, behavior.maximum)
        limit = min(current, *self._limits(now, current, behavior.down, -1))
        return max(wanted, limit, behavior.minimum) if wanted < current else current

    def _limits(self, now: float, current: int, rules: Rules, sign: int) -> Iterable[int]:
        for kind, value, period_s in rules.policies:
            start = current - sum(change for at, change in self._changes if at > now - period_s)
            if kind == "Pods":
                yield start + sign * value
            else:
                yield (ceil if sign > 0 else floor)(start * (100 + sign * value) / 100)
