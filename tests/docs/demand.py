"""The table of docs/kubernetes.md that shows demand beyond the cap: `python -m tests.docs.demand` prints it.

A queue model: requests come at random (a Poisson process) and take a random time (an exponential distribution). At most
`CAP` are served at once and `QUEUE` wait; the rest is rejected, as by the router. What the router's own meter makes of
its counts is printed beside what was offered. Every run prints the same.
"""

import heapq
import os
import random
from collections import deque
from statistics import mean
from typing import NamedTuple

from app.admission.demand import WINDOW_S, DemandMeter
from app.admission.model_traffic import TrafficCounts
from app.bootstrap import shared_table
from app.shared_memory.counters import InflightCounters

CAP = 10
QUEUE = 5
MEAN_S = 2.0
OFFERED = (2, 5, 8, 10, 12, 15, 20, 40, 80)
WARM_UP_S = 60
SECONDS = 600
MODEL = 3


class Shown(NamedTuple):
    """What a scrape shows."""

    inflight: int
    queued: int
    demand: float


class Simulation:
    """One model behind one router."""

    def __init__(self, counts: TrafficCounts, chance: random.Random) -> None:
        self._traffic = counts.of(MODEL)
        self._counts = counts
        self._meter = DemandMeter(counts)
        self._chance = chance
        self._ends: list[tuple[float, float]] = []
        """When each request in progress ends, and when it began."""
        self._waiting: deque[float] = deque()
        self.now = 0.0

    def run(self, rate: float, seconds: float) -> list[Shown]:
        """Returns what is shown every second while requests come at this rate per second."""
        shown = []
        next_arrival = self.now + (self._chance.expovariate(rate) if rate else float("inf"))
        for _ in range(round(seconds)):
            self.now += 1
            while min(next_arrival, self._next_end()) <= self.now:
                if next_arrival < self._next_end():
                    self._arrive(next_arrival)
                    next_arrival += self._chance.expovariate(rate)
                else:
                    self._end()
            self._meter.measure([MODEL], self.now)
            present = len(self._ends) + len(self._waiting)
            excess = self._counts.excess_milli[MODEL] / 1000
            shown.append(Shown(len(self._ends), len(self._waiting), present + excess))
        return shown

    def _next_end(self) -> float:
        return self._ends[0][0] if self._ends else float("inf")

    def _arrive(self, at: float) -> None:
        if len(self._ends) < CAP:
            self._begin(at)
        elif len(self._waiting) < QUEUE:
            self._waiting.append(at)
        else:
            self._traffic.count_rejected()

    def _begin(self, at: float) -> None:
        heapq.heappush(self._ends, (at + self._chance.expovariate(1 / MEAN_S), at))

    def _end(self) -> None:
        at, began = heapq.heappop(self._ends)
        self._traffic.count_served(at - began)
        if self._waiting:
            self._waiting.popleft()
            self._begin(at)


def simulation(seed: int = 1) -> Simulation:
    """Returns a new one."""
    table = shared_table(CAP, QUEUE)
    counts = TrafficCounts(table, InflightCounters(table))
    counts.attach(0)
    for fd in (table._fd, *table.eventfds):  # the memory stays as long as it is used
        os.close(fd)
    return Simulation(counts, random.Random(seed))


def rows() -> list[tuple[str, ...]]:
    """The table's rows: what was offered, and the means of what was shown."""
    made = []
    for offered in OFFERED:
        run = simulation()
        run.run(offered / MEAN_S, WARM_UP_S)
        shown = run.run(offered / MEAN_S, SECONDS)
        figures = (mean(getattr(one, name) for one in shown) for name in Shown._fields)
        made.append((f"{offered / MEAN_S:g}", str(offered), *(f"{figure:.1f}" for figure in figures)))
    return made


HEAD = "Requests/s, Offered, In flight, Queued, Demand"


def main() -> None:
    """Print the table, and what is shown after the load has ended."""
    for row in (HEAD.split(", "), *rows()):
        print(" | ".join(f"{cell:>10}" for cell in row))
    run = simulation()
    run.run(OFFERED[-1] / MEAN_S, WARM_UP_S)
    after = [round(shown.demand, 1) for shown in run.run(0, WINDOW_S + 5)]
    print(f"demand, second by second, after the load has ended: {after}")


if __name__ == "__main__":
    main()
