"""Rates and percentiles from the differences between readings of counters."""

from array import array
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observability import live_figures
from app.observability.live_figures import Counted, LiveFigures, Reading, percentile
from app.observability.metrics import SECONDS, SharedState
from tests.support.routed_router import RoutedRouter

BOUNDS = (1.0, 2.0, 4.0)


def reading(
    at: float, requests: float = 0, failures: float = 0, rejections: float = 0, times: tuple[float, ...] = ()
) -> Reading:
    """What was counted by this moment; `times` are seconds inside the model of as many requests."""
    total = Counted(requests, failures, rejections)
    if times:
        total.times["in_model"] = array("d", bytes(8 * (len(SECONDS) + 1)))
        total.add_times("in_model", {bound: float(times.count(bound)) for bound in set(times)})
    return Reading(at, total, {"m": total}, {"http://a": (requests, failures)})


def figures(*readings: Reading) -> LiveFigures:
    """After these readings."""
    found = LiveFigures()
    for each in readings:
        found.add(each)
    return found


@pytest.mark.parametrize(
    ("numbers", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((2, 0, 0, 0), 0.5, 0.5),  # evenly spread from 0 to 1
        ((1, 1, 0, 0), 0.5, 1.0),
        ((0, 4, 0, 0), 0.99, 1.99),
        ((1, 0, 1, 0), 0.75, 3.0),  # an empty bucket between
        ((0, 0, 0, 3), 0.5, 4.0),  # the last one has no bound
        ((3, 0, 0, 1), 0.99, 4.0),
    ],
)
def test_percentiles_are_those_of_prometheus(numbers: tuple[float, ...], share: float, expected: float | None) -> None:
    """An estimate is histogram_quantile's: linear in its bucket; where nothing was counted, there is none."""
    assert percentile(BOUNDS, numbers, share) == expected


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1))
def test_percentile_lies_in_its_bucket(numbers: list[int], share: float) -> None:
    """Whatever was counted, at least this share of the amounts is in the buckets up to the estimate's own."""
    found = percentile(BOUNDS, numbers, share)
    if not sum(numbers):
        assert found is None
        return
    assert found is not None
    below = list(accumulate(numbers))
    own = next(at for at, bound in enumerate((*BOUNDS, float("inf"))) if (found <= bound and below[at]) or at == 3)
    assert below[own] >= share * sum(numbers) - 1e-6 or found == BOUNDS[-1]


def test_one_reading_tells_nothing() -> None:
    """Before there are two readings, a rate is unknown, and not 0; so are times, however much was counted before."""
    found = figures(reading(5, 100, times=(1.0, 1.0))).of_all()
    assert found["requests_per_s"] is found["rejections_per_s"] is found["failures_per_s"] is None
    assert found["times_s"] == {"queue": None, "first_token": None, "in_model": None}


def test_rates_are_over_ten_seconds_and_times_over_a_minute() -> None:
    """A rate is that of the last ten seconds, times are those of the last minute: what is older does not count."""
    slow, quick = (60.0,) * 5, (0.01,) * 8
    found = figures(
        reading(0, times=slow),
        *(reading(at, 10 * at, times=(*slow, *quick[:4])) for at in range(1, 60)),
        *(reading(at, 590 + 2 * (at - 59), times=(*slow, *quick)) for at in range(60, 76)),
    ).of_all()
    assert found["over_s"] == {"rates": 10.0, "times": 60.0}
    assert found["requests_per_s"] == 2
    assert found["times_s"]["in_model"]["p99"] <= 0.01


def test_figures_begin_with_the_second_reading() -> None:
    """Until ten seconds are over, a rate is over the time that there is."""
    found = figures(reading(0, 7), reading(1, 10, failures=1.0), reading(2, 11, failures=1.0)).of_all()
    assert (found["requests_per_s"], found["failures_per_s"]) == (2, 0.5)
    assert found["over_s"]["rates"] == 2


def test_what_is_set_back_is_no_negative_rate() -> None:
    """A counter that shrinks, because its id or file is another's now, gives a rate of 0."""
    of_model = figures(reading(0, 50, rejections=9.0), reading(1, 3)).of_model("m")
    assert (of_model["requests_per_s"], of_model["rejections_per_s"]) == (0, 0)


def test_models_and_endpoints_that_appear_count_from_nothing() -> None:
    """What an earlier reading did not have counts as 0 there; of what was never counted, all rates are 0."""
    found = figures(Reading(0), reading(2, 6, times=(1.0,)))
    assert found.of_model("m")["requests_per_s"] == 3
    assert found.of_model("m")["times_s"]["in_model"]["p50"] <= 1
    rates = found.of_endpoints()
    assert rates.of("http://a") == {"requests_per_s": 3, "failures_per_s": 0}
    assert rates.of("http://b") == {"requests_per_s": 0, "failures_per_s": 0}


def test_endpoint_has_failed_by_its_response_or_without_one(tmp_path: Path) -> None:
    """An attempt whose client left, or that a drain cut off, is no failure of the endpoint."""
    codes = ("200", "404", "499", "cut_off", "500", "503", "upstream_broken")
    with RoutedRouter(tmp_path, {"name": "m", "endpoints": ["http://127.0.0.1:9"]}) as local:
        for code in codes:
            local.router.metrics.endpoint_requests("http://127.0.0.1:9", code).inc()
        state = SharedState(1, 0, 0, 1, 0, 0, ())
        found = live_figures.read(local.router.metrics, state, 0.0).endpoints
    assert found == {"http://127.0.0.1:9": (len(codes), 3)}


def test_idle_endpoints_have_no_rates_of_their_own() -> None:
    """Whoever looks at hundreds of endpoints looks at those only of which something was counted lately."""
    found = figures(reading(0, 5), *(Reading(float(at), endpoints={"http://a": (6.0, 1.0)}) for at in range(1, 11)))
    assert found.of_endpoints().busy == {"http://a": {"requests_per_s": 0.1, "failures_per_s": 0.1}}
    found.add(Reading(11.0, endpoints={"http://a": (6.0, 1.0)}))
    assert found.of_endpoints().busy == {}
    assert figures(reading(0, 5)).of_endpoints().of("http://a")["requests_per_s"] is None


def test_readings_do_not_pile_up() -> None:
    """Only the last minute is kept, however long somebody watches."""
    found = figures(*(reading(float(at)) for at in range(1000)))
    assert len(found._readings) <= 62
