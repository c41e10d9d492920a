"""The figures that people watch: rates and percentiles, from the differences between two readings of the counters.

Rates are over the last `RATES_S`, percentiles over the last `TIMES_S`, or over the time since the first reading while
that is shorter. Where there is nothing to tell, because there is one reading only or nothing was counted in between, a
figure is None and not 0.

Times are those of requests that were admitted. `router_request_duration_seconds` is not used: rejections are in it,
which take no time, so under overload its percentiles would fall just when requests begin to take longer.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import sub
from typing import Any

from app.errors import CutOff
from app.observability.metric_series import Sample
from app.observability.metrics import (
    ENDPOINT_REQUESTS,
    MODEL_SECONDS,
    QUEUE_SECONDS,
    REJECTED,
    REQUESTS,
    SECONDS,
    Metrics,
    SharedState,
)
from app.observability.token_metrics import FIRST_TOKEN, FIRST_TOKEN_SECONDS

RATES_S = 10.0
TIMES_S = 60.0
PERCENTILES = (50, 90, 99)

_FAMILIES = (REQUESTS, REJECTED, ENDPOINT_REQUESTS, MODEL_SECONDS, FIRST_TOKEN, QUEUE_SECONDS)
_HISTOGRAMS = {
    QUEUE_SECONDS: ("queue", SECONDS),
    FIRST_TOKEN: ("first_token", FIRST_TOKEN_SECONDS),
    MODEL_SECONDS: ("in_model", SECONDS),
}
_BOUNDS = dict(_HISTOGRAMS.values())


@dataclass(slots=True)
class Counted:
    """What was counted of one model, or of all requests, ever."""

    requests: float = 0.0
    failures: float = 0.0
    """Responses with a status of 500 or more."""
    rejections: float = 0.0
    times: "dict[str, array[float]]" = field(default_factory=dict)
    """How many requests are in each bucket, by what was timed. The last bucket has no bound."""

    def add_times(self, timed: str, numbers: Mapping[Sample, float]) -> None:
        """Add the buckets of a series."""
        bounds = _BOUNDS[timed]
        buckets = self.times.setdefault(timed, array("d", bytes(8 * (len(bounds) + 1))))
        for bound, number in numbers.items():
            if isinstance(bound, float):
                buckets[bisect_left(bounds, bound)] += number


_NOTHING = Counted()
_NONE = 0.0, 0.0


@dataclass(frozen=True, slots=True)
class EndpointRates:
    """The rates of all endpoints. Those that are idle have none of their own."""

    idle: dict[str, float | None] = field(default_factory=dict)
    """The rates of an endpoint of which nothing was counted: 0, or None while none are known."""
    busy: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Those of the others, by URL."""

    def of(self, url: str) -> dict[str, float | None]:
        """Returns the rates of an endpoint."""
        return self.busy.get(url, self.idle)


@dataclass(slots=True)
class Reading:
    """All that was counted by a moment."""

    at: float
    """In seconds of a monotonic clock."""
    total: Counted = field(default_factory=Counted)
    models: dict[str, Counted] = field(default_factory=dict)
    endpoints: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Attempts with each endpoint, and those among them that failed: with such a status, or without a response. One
    that a drain cut off has not failed."""


def read(metrics: Metrics, state: SharedState, now: float) -> Reading:
    """Read what all workers have counted. Other greenlets run while there is much."""
    reading = Reading(now)
    for family, labels, numbers in metrics.totals(*_FAMILIES):
        if family is ENDPOINT_REQUESTS:
            requests, failures = reading.endpoints.get(labels["endpoint"], _NONE)
            number = sum(numbers.values())
            code = labels["code"]
            failed = number if _is_failure(code) and code != CutOff.code else 0.0
            reading.endpoints[labels["endpoint"]] = requests + number, failures + failed
        elif family is REJECTED:
            reading.total.rejections += sum(numbers.values())
        else:
            each = [reading.models.setdefault(labels["model"], Counted())] if "model" in labels else []
            for counted in (reading.total, *each):
                if family is REQUESTS:
                    _add_responses(counted, labels["code"], numbers)
                else:
                    counted.add_times(_HISTOGRAMS[family][0], numbers)
    for model in state.models:
        reading.models.setdefault(model.name, Counted()).rejections = model.rejected
    return reading


def _add_responses(counted: Counted, code: str, numbers: Mapping[Sample, float]) -> None:
    number = sum(numbers.values())
    counted.requests += number
    if _is_failure(code):
        counted.failures += number


def _is_failure(code: str) -> bool:
    return not code.isdigit() or int(code) >= 500


class LiveFigures:
    """The readings of the last minute, in one process. Add one before you ask."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self._minute_ago = self._before = self._now = Reading(0.0)
        """The readings between which times lie, and rates: the first of each, and the newest."""

    def add(self, reading: Reading) -> None:
        """Add the newest reading, and forget those that no figure needs any more."""
        self._readings.append(reading)
        while len(self._readings) > 2 and self._readings[1].at <= reading.at - TIMES_S:
            self._readings.popleft()
        self._minute_ago, self._before, self._now = self._aged(TIMES_S), self._aged(RATES_S), reading

    def of_all(self) -> dict[str, Any]:
        """Returns the figures of all requests together, and over how many seconds they are."""
        minute_ago, before, now = self._minute_ago, self._before, self._now
        over = {"rates": round(now.at - before.at, 1), "times": round(now.at - minute_ago.at, 1)}
        times = dict.fromkeys(_BOUNDS) | _times(minute_ago.total, now.total)
        rejections = self._rate(before.total.rejections, now.total.rejections)
        return {
            "over_s": over,
            **self._rates(before.total, now.total),
            "rejections_per_s": rejections,
            "times_s": times,
        }

    def of_model(self, name: str) -> dict[str, Any]:
        """Returns the figures of a model."""
        before, now = self._before.models.get(name, _NOTHING), self._now.models.get(name, _NOTHING)
        times = _times(self._minute_ago.models.get(name, _NOTHING), now)
        rejections = self._rate(before.rejections, now.rejections)
        return {**self._rates(before, now), "rejections_per_s": rejections, "times_s": times}

    def of_endpoints(self) -> EndpointRates:
        """Returns the rates of the endpoints, which have no times of their own."""
        before = self._before.endpoints
        return EndpointRates(
            self._rates(_NOTHING, _NOTHING),
            {
                url: self._rates(Counted(*was), Counted(*now))
                for url, now in self._now.endpoints.items()
                if now != (was := before.get(url, _NONE))
            },
        )

    def _aged(self, seconds: float) -> Reading:
        """Returns the newest reading that is as old, within half a second, or else the oldest."""
        wanted = self._readings[-1].at - seconds + 0.5
        at = bisect_right(self._readings, wanted, hi=len(self._readings) - 1, key=lambda reading: reading.at)
        return self._readings[max(0, at - 1)]

    def _rates(self, before: Counted, now: Counted) -> dict[str, float | None]:
        return {
            "requests_per_s": self._rate(before.requests, now.requests),
            "failures_per_s": self._rate(before.failures, now.failures),
        }

    def _rate(self, before: float, now: float) -> float | None:
        """Returns so many per second. Fewer than before: an id, or a file, has another owner now."""
        seconds = self._now.at - self._before.at
        return round(max(0.0, now - before) / seconds, 3) if seconds > 0 else None


def _times(before: Counted, now: Counted) -> dict[str, dict[str, float] | None]:
    """Returns the percentiles of all that was timed between the two, in seconds."""
    found: dict[str, dict[str, float] | None] = {}
    for timed, ever in now.times.items():
        earlier = before.times.get(timed)
        numbers = ever if earlier is None else array("d", map(max, map(sub, ever, earlier), repeat(0.0)))
        values = {f"p{each}": percentile(_BOUNDS[timed], numbers, each / 100) for each in PERCENTILES}
        found[timed] = {name: value for name, value in values.items() if value is not None} or None
    return found


def percentile(bounds: Sequence[float], numbers: Sequence[float], share: float) -> float | None:
    """Returns the value that `share` of the amounts do not exceed, as Prometheus' histogram_quantile estimates it.

    It lies between the bounds of its bucket as if the amounts in there were evenly spread. Of the last bucket, which
    has no upper bound, the lower one is returned. `numbers` are those of each bucket, one more than there are bounds.
    """
    rank = share * sum(numbers)
    if not rank > 0:
        return None
    below, lower = 0.0, 0.0
    for bound, number in zip(bounds, numbers, strict=False):
        if number and below + number >= rank:
            return round(lower + (bound - lower) * (rank - below) / number, 6)
        below, lower = below + number, bound
    return lower
