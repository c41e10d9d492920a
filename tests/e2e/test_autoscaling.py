"""How the autoscalers of ops/k8s follow a load that jumps, as a simulation on the metrics of real routers shows."""

import re
from collections.abc import Mapping

import pytest

from tests.autoscaling.fleet import Fleet
from tests.autoscaling.simulation import Outcome, choices, simulate
from tests.support.ops import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.alone]

GUIDE = ROOT / "docs/kubernetes.md"
Outcomes = Mapping[str, Outcome]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of each choice, by its name."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        return {choice.name: simulate(choice, fleet) for choice in choices()}


@pytest.mark.parametrize("name", [choice.name for choice in choices() if choice.demand])
def test_demand_brings_the_right_number_of_pods_at_once(outcomes: Outcomes, name: str) -> None:
    """From 2 pods to 16 in the time of three decisions and a pod's start, hardly more of them, and back without turns.

    Decisions are 15 s apart, and the first one sees the jump after 30 s at worst.
    """
    outcome = outcomes[name]
    assert outcome.climb_s is not None
    assert outcome.climb_s <= 150
    assert outcome.overshoot <= 2
    assert outcome.reversals <= 1
    assert outcome.fall_s is not None


def test_requests_in_flight_alone_climb_in_steps_of_a_start(outcomes: Outcomes) -> None:
    """The cap hides how much is missing, and pods that start count as 0: it takes far longer."""
    alone = outcomes["HPA: requests in flight alone"]
    both = outcomes["HPA: demand and requests in flight"]
    assert both.climb_s is not None
    assert alone.climb_s is None or alone.climb_s > 1.5 * both.climb_s
    assert alone.rejected > both.rejected + 0.1


def test_guide_prints_what_the_simulation_shows(outcomes: Outcomes) -> None:
    """Each choice has its row, whose figures are those of this run but for what the load of the machine changes."""
    rows = re.findall(
        r"^\| (.+?) \| (\d+) s \| (\d+)% \| (\d+) \| (\d+) \| (\d+) s \|$", GUIDE.read_text(), re.MULTILINE
    )
    assert [row[0] for row in rows] == list(outcomes)
    for name, *figures in rows:
        climb_s, rejected, overshoot, reversals, fall_s = map(int, figures)
        outcome = outcomes[name]
        assert outcome.climb_s == pytest.approx(climb_s, rel=0.5)
        assert outcome.rejected * 100 == pytest.approx(rejected, abs=20)
        assert outcome.overshoot == pytest.approx(overshoot, abs=2)
        assert outcome.reversals == pytest.approx(reversals, abs=1)
        assert outcome.fall_s == pytest.approx(fall_s, abs=240)
