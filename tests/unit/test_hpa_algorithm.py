"""The autoscaler of the simulation decides as Kubernetes documents it."""

import pytest

from tests.autoscaling.hpa import Autoscaler, Behavior, Pod, Rules, wanted_by_pods, wanted_by_total

QUICK = Rules(0, (("Percent", 100, 15), ("Pods", 4, 15)))
SLOW = Rules(300, (("Percent", 25, 60),))
BEHAVIOR = Behavior(2, 20, QUICK, SLOW)


def _ready(*values: float | None) -> list[Pod]:
    return [Pod(False, value) for value in values]


@pytest.mark.parametrize(
    ("pods", "wanted"),
    [
        (_ready(10, 10), 3),
        (_ready(7, 7.6), 2),
        (_ready(7, 8.6), 3),
        (_ready(1, 1, 1), 1),
        (_ready(None, None), None),
    ],
    ids=["full", "within the tolerance", "just above it", "idle", "no values"],
)
def test_ready_pods_are_averaged(pods: list[Pod], wanted: int | None) -> None:
    """desired = ceil(current * value / target), and nothing changes within 10 % of the target."""
    assert wanted_by_pods(len(pods), pods, 7) == wanted


def test_pods_that_start_slow_the_way_up() -> None:
    """Pending pods and pods without a metric count as 0: two full pods and one that starts ask for nothing more."""
    full = _ready(10, 10)
    assert wanted_by_pods(2, full, 7) == 3
    assert wanted_by_pods(3, [*full, Pod(True, None)], 7) == 3
    assert wanted_by_pods(3, [*full, Pod(False, None)], 7) == 3


def test_a_zero_of_a_pod_that_starts_hides_full_ones() -> None:
    """Two pods at 10 and two at 0, target 7: the autoscaler goes down. Without the zeros it waits for the pods."""
    assert wanted_by_pods(4, _ready(10, 10, 0, 0), 7) == 3
    assert wanted_by_pods(4, _ready(10, 10, None, None), 7) == 4


def test_pods_without_a_metric_hold_up_the_way_down() -> None:
    """They are taken to be at the target."""
    assert wanted_by_pods(4, _ready(1, 1, 1, 1), 7) == 1
    assert wanted_by_pods(4, _ready(1, 1, None, None), 7) == 3


def test_a_total_asks_for_all_pods_at_once() -> None:
    """A metric of type Object or External knows no pods: what it asks for doesn't depend on how many have started."""
    assert wanted_by_total(2, 112, 7) == 16
    assert wanted_by_total(16, 112, 7) == 16
    assert wanted_by_total(15, 112, 7) == 15
    assert wanted_by_total(16, 42, 7) == 6


def test_policies_limit_each_step() -> None:
    """Up: four pods or twice as many in 15 s, whichever is more. Down: a quarter in a minute."""
    autoscaler = Autoscaler(Behavior(2, 20, QUICK, Rules(0, SLOW.policies)))
    counts = [2]
    for now in range(0, 45, 15):
        counts.append(autoscaler.decide(now, counts[-1], [40]))
    assert counts == [2, 6, 12, 20]
    for now in range(120, 255, 15):
        counts.append(autoscaler.decide(now, counts[-1], [3]))
    assert counts[4:] == [15, 15, 15, 15, 11, 11, 11, 11, 8]


def test_window_keeps_what_was_wanted() -> None:
    """Down goes only what the whole window could have done with; up goes at once."""
    autoscaler = Autoscaler(Behavior(2, 20, QUICK, Rules(300, (("Pods", 20, 15),))))
    assert autoscaler.decide(0, 10, [10]) == 10
    assert [autoscaler.decide(now, 10, [4]) for now in (15, 150, 285)] == [10, 10, 10]
    assert autoscaler.decide(300, 10, [4]) == 4
    assert autoscaler.decide(315, 4, [6]) == 6


def test_the_most_that_a_metric_asks_for_counts() -> None:
    """With several metrics, and a metric without a value keeps the autoscaler from going down."""
    behavior = Behavior(2, 20, QUICK, Rules(0, (("Pods", 20, 15),)))
    assert Autoscaler(behavior).decide(0, 5, [3, 7]) == 7
    assert Autoscaler(behavior).decide(0, 5, [3, None]) == 5
    assert Autoscaler(behavior).decide(0, 5, [7, None]) == 7
    assert Autoscaler(behavior).decide(0, 5, [3, 4]) == 4


def test_bounds_hold() -> None:
    """Never fewer than the minimum, never more than the maximum."""
    assert Autoscaler(Behavior(2, 8, QUICK, SLOW)).decide(0, 6, [20]) == 8
    assert Autoscaler(Behavior(2, 8, QUICK, Rules(0, (("Pods", 20, 15),)))).decide(0, 6, [0]) == 2
