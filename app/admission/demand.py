"""The demand for each model: how many requests would be in progress at once if none were rejected.

In flight and queued requests stop growing when the cap and the queue are full, however many more come. So those that
were rejected are added, as what they would be if they had been admitted. By Little's law, requests that come at a rate
r and take a mean time w are r * w at once: demand = in flight + queued + rejected per second * mean duration.

The leader computes the last term once a second, over the last `WINDOW_S`, and leaves it in shared memory; in flight and
queued are added at the scrape. So any worker shows the same, and demand falls back to in flight + queued within
`WINDOW_S` after the last rejection. A new leader begins with a shorter window.

The mean duration is that of the requests served within the window. If none was, it is the mean that was known before.
If no request was ever served, those that were rejected within the window are taken to be still in progress, as those
that were admitted are.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from app.admission.model_traffic import TrafficCounts

WINDOW_S = 15.0
"""As often as Prometheus usually scrapes and an autoscaler decides."""


class Totals(NamedTuple):
    """Of one model, ever."""

    rejected: int = 0
    served: int = 0
    served_us: int = 0


class Excess(NamedTuple):
    """What demand exceeds the requests that are there by."""

    requests: float
    mean_s: float
    """How long a request takes; 0 if that is not known."""


def excess(before: Totals, now: Totals, seconds: float, known_mean_s: float) -> Excess:
    """Returns how many requests were missing on average in these seconds, which lie between the two."""
    rejected, served = now.rejected - before.rejected, now.served - before.served
    mean_s = (now.served_us - before.served_us) / served / 1e6 if served > 0 else known_mean_s
    if rejected <= 0 or seconds <= 0:  # fewer than before: the id has another model now
        return Excess(0.0, mean_s)
    return Excess(rejected * mean_s / seconds if mean_s else float(rejected), mean_s)


class DemandMeter:
    """Measures the excess of every model. Every worker has one, and the leader's is used."""

    def __init__(self, counts: TrafficCounts) -> None:
        self._counts = counts
        self._samples: deque[tuple[float, Mapping[int, Totals]]] = deque()
        """Of the last `WINDOW_S`, and one that is as old or older."""

    def measure(self, shared_ids: Iterable[int], now: float) -> None:
        """Measure these models. To be called every second or so by the worker that leads, with the time in seconds."""
        counts = self._counts
        while self._samples and now - self._samples[-1][0] > WINDOW_S:
            self._samples.clear()  # this worker led before, and another one since
        totals = {shared_id: Totals(*counts.totals(shared_id)) for shared_id in shared_ids}
        self._samples.append((now, totals))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        began, before = self._samples[0]
        if now == began:
            return  # what the leader before has measured holds for the moment
        for shared_id, current in totals.items():
            found = excess(before.get(shared_id, current), current, now - began, counts.mean_us[shared_id] / 1e6)
            counts.excess_milli[shared_id] = round(found.requests * 1000)
            counts.mean_us[shared_id] = round(found.mean_s * 1e6)
