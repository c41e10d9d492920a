"""How the autoscalers of ops/k8s follow a load that jumps: `python -m tests.autoscaling.simulation` prints the table.

Time is simulated, in steps of 15 s, which is how often the autoscaler decides and Prometheus scrapes. The manifests say
how the autoscaler behaves, and real routers what it sees (fleet.py). A pod that is asked for is pending for 30 s, and
then ready. What the autoscaler sees is a scrape that is 15 s old.
"""

import sys
import tempfile
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml

from tests.autoscaling.fleet import Fleet, Sample
from tests.autoscaling.hpa import Autoscaler, Behavior, Pod, behavior_of, wanted_by_pods, wanted_by_total
from tests.support.ops import K8S

STEP_S = 15
START_STEPS = 2
SCRAPE_STEPS = 1

SUFFICIENT = 1.2
"""Pods suffice when each has at most so many times its target: with a target of 70 % they are 84 % full."""

LOAD = ((10, 60), (112, 600), (42, 900))
"""Requests that would be in progress at once, and for how many seconds: two pods, sixteen, six."""


class Choice(NamedTuple):
    """One way to scale the routers."""

    name: str
    behavior: Behavior
    target: float
    demand: bool
    inflight: bool


class Outcome(NamedTuple):
    """What became of a choice."""

    name: str
    climb_s: int | None
    """From the jump up until the ready pods suffice; None if they never do."""
    rejected: float
    """The share of the requests of the first five minutes after the jump up."""
    overshoot: int
    """Pods more than were needed, at most."""
    reversals: int
    """How often the number of pods turned round while the load stayed the same."""
    fall_s: int | None
    """From the jump down until at most one pod is left that isn't needed."""


def choices() -> list[Choice]:
    """The components that scale the routers, and requests in flight alone for comparison."""
    hpa = _manifest("hpa/horizontal-pod-autoscaler.yaml")
    keda = _manifest("keda/scaled-object.yaml")
    behavior = behavior_of(hpa["minReplicas"], hpa["maxReplicas"], hpa["behavior"])
    target = float(hpa["metrics"][0]["object"]["target"]["averageValue"])
    by_keda = behavior_of(
        keda["minReplicaCount"],
        keda["maxReplicaCount"],
        keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
    )
    threshold = float(keda["triggers"][0]["metadata"]["threshold"])
    return [
        Choice("KEDA: demand", by_keda, threshold, demand=True, inflight=False),
        Choice("HPA: demand and requests in flight", behavior, target, demand=True, inflight=True),
        Choice("HPA: requests in flight alone", behavior, target, demand=False, inflight=True),
    ]


def _manifest(path: str) -> Any:
    return yaml.safe_load((K8S / "components" / path).read_text())["spec"]


def simulate(choice: Choice, fleet: Fleet) -> Outcome:
    """Run the whole load against one choice."""
    load = [offered for offered, seconds in LOAD for _ in range(seconds // STEP_S)]
    autoscaler = Autoscaler(choice.behavior)
    pods = [-START_STEPS] * choice.behavior.minimum  # the step at which each was asked for, oldest first
    seen: list[list[Sample]] = []
    counts: list[int] = []
    ready: list[int] = []
    for step, offered in enumerate(load):
        visible = step - SCRAPE_STEPS - 1
        if visible >= 0:
            wanted = autoscaler.decide(step * STEP_S, len(pods), _wanted(choice, pods, seen[visible], step))
            pods = pods[:wanted] + [step] * (wanted - len(pods))
        counts.append(len(pods))
        ready.append(sum(born + START_STEPS <= step for born in pods))
        seen.append(fleet.pods(ready[-1], offered))
    return _outcome(choice, counts, ready, seen)


def _wanted(choice: Choice, pods: Sequence[int], samples: Sequence[Sample], step: int) -> list[int | None]:
    """What each metric asks for. The samples are those of the pods that were ready then, oldest first."""
    wanted: list[int | None] = []
    if choice.demand:
        wanted.append(wanted_by_total(len(pods), sum(sample.demand for sample in samples), choice.target))
    if choice.inflight:
        values = [sample.inflight for sample in samples[: len(pods)]]
        shown = [Pod(False, value) for value in values]
        shown += [Pod(born + START_STEPS > step, None) for born in pods[len(values) :]]
        wanted.append(wanted_by_pods(len(pods), shown, choice.target))
    return wanted


def _outcome(choice: Choice, counts: Sequence[int], ready: Sequence[int], seen: Sequence[Sequence[Sample]]) -> Outcome:
    up, down, end = accumulate(seconds // STEP_S for _, seconds in LOAD)
    (_, _), (high, _), (low, _) = LOAD
    enough = ceil(high / (choice.target * SUFFICIENT))
    climb = next((step - up for step in range(up, down) if ready[step] >= enough), None)
    fall = next((step - down for step in range(down, end) if counts[step] <= ceil(low / choice.target) + 1), None)
    return Outcome(
        choice.name,
        None if climb is None else climb * STEP_S,
        mean(mean(sample.rejected for sample in samples) for samples in seen[up : up + 300 // STEP_S]),
        max(0, max(counts) - ceil(high / choice.target)),
        _reversals(counts[up:down]) + _reversals(counts[down:end]),
        None if fall is None else fall * STEP_S,
    )


def _reversals(counts: Sequence[int]) -> int:
    directions = [after > before for before, after in pairwise(counts) if after != before]
    return sum(one != other for one, other in pairwise(directions))


def table(outcomes: Sequence[Outcome]) -> str:
    """The rows as docs/kubernetes.md prints them."""
    head = "| Choice | Up in | Rejected | Pods too many | Turns round | Down in |"
    rows = [
        f"| {one.name} | {one.climb_s} s | {one.rejected:.0%} | {one.overshoot} | {one.reversals} | {one.fall_s} s |"
        for one in outcomes
    ]
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|", *rows])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder)) as fleet:
        sys.stdout.write(table([simulate(choice, fleet) for choice in choices()]) + "\n")


if __name__ == "__main__":
    main()
