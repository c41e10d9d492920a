"""What `least_load` gains over `least_inflight`: a simulation of model servers with unequal prompts.

    python -m tests.bench.load_reports [--seconds 300] [--seed 1]

No process and no socket: the policies are the shipping ones (app/routing/policies.py, load_reports.py), the rest is a
model. Four servers work in steps, as vLLM does: a step gives every running request a token, and reads up to 2,048
tokens of the prompts that were admitted, in order of arrival. It takes 10 ms, 0.1 ms for each running request and
0.05 ms for each token of a prompt. A server runs up to 64 requests whose prompts and outputs fit its cache of 80,000
tokens; the others wait. Requests arrive at random (Poisson). Of their prompts 85 % have 100 to 1,000 tokens and the
rest 4,000 to 16,000; outputs have 20 to 300. Another router, which does not see ours, sends two fifths of them: by its
own count of requests in flight, or by sessions that happen to lie unevenly (6 : 2 : 1 : 1), or by `least_load` too.

How to read it: `p50`, `p99` are times to the first token. `goodput` is how many requests a second had it within 2 s.
Everything but ours is equal in every row, drawn from the same seed.
"""

import argparse
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from app.routing.load_reports import UNIT, Reported, loads_of
from app.routing.policies import Choice, least_inflight, p2c, round_robin
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.table import Table

SERVERS = 4
MOST_RUNNING = 64
CACHE_TOKENS = 80_000
STEP_S, PER_REQUEST_S, PER_PROMPT_TOKEN_S = 0.010, 0.0001, 0.00005
PROMPT_TOKENS_A_STEP = 2048
SCRAPE_S = 1.0
GOOD_S = 2.0
OTHERS_SHARE = 0.4
SESSIONS = (6, 2, 1, 1)
Policy = Callable[["Router", Sequence["Server"]], int]


@dataclass(eq=False, slots=True)
class Request:
    """One request, and what is left of it."""

    arrived: float
    prompt: int
    output: int
    router: "Router"
    unread: int = 0
    ends_at_step: int = 0


@dataclass(eq=False)
class Server:
    """A model server with continuous batching and chunked prefill."""

    number: int
    waiting: deque[Request] = field(default_factory=deque)
    reading: deque[Request] = field(default_factory=deque)
    decoding: list[tuple[int, int, Request]] = field(default_factory=list)
    cached: int = 0
    steps: int = 0
    is_busy: bool = False

    def step(self, now: float, first_token: Callable[[Request, float], None]) -> float:
        """Run one step. Returns when it ends."""
        while self.waiting and len(self.reading) + len(self.decoding) < MOST_RUNNING:
            request = self.waiting[0]
            if self.cached and self.cached + request.prompt + request.output > CACHE_TOKENS:
                break
            self.cached += request.prompt + request.output
            request.unread = request.prompt
            self.reading.append(self.waiting.popleft())
        budget, read = PROMPT_TOKENS_A_STEP, list[Request]()
        while self.reading and budget:
            taken = min(budget, self.reading[0].unread)
            self.reading[0].unread -= taken
            budget -= taken
            if not self.reading[0].unread:
                read.append(self.reading.popleft())
        end = now + STEP_S + PER_REQUEST_S * len(self.decoding) + PER_PROMPT_TOKEN_S * (PROMPT_TOKENS_A_STEP - budget)
        self.steps += 1
        for request in read:
            first_token(request, end)
            heappush(self.decoding, (self.steps + request.output, id(request), request))
        while self.decoding and self.decoding[0][0] <= self.steps:
            request = heappop(self.decoding)[2]
            self.cached -= request.prompt + request.output
            request.router.inflight[self.number] -= 1
        return end

    def report(self, own: int) -> Reported:
        """What a scrape finds, for a router with so many requests in flight here."""
        running = len(self.reading) + len(self.decoding)
        others = max(0, len(self.waiting) + running - own)
        cache = min(1.0, self.cached / CACHE_TOKENS)
        return Reported(len(self.waiting) * UNIT, others * UNIT, own, int(cache * UNIT), is_stale=False)


class Router:
    """A router's view: its requests in flight, and the last reports."""

    def __init__(self, choose: "Callable[[Router], int]") -> None:
        self.choose = choose
        self.inflight = [0] * SERVERS
        self.reports = [Reported()] * SERVERS
        self.turn = 0

    def pick(self) -> int:
        """Choose a server, and count the request there."""
        self.turn += 1
        at = self.choose(self)
        self.inflight[at] += 1
        return at


POLICIES: dict[str, Callable[[Router], int]] = {
    "least_load": lambda router: least_inflight(Choice((), loads_of(router.inflight, router.reports), router.turn)),
    "least_inflight": lambda router: least_inflight(Choice((), router.inflight, router.turn)),
    "p2c": lambda router: p2c(Choice((), router.inflight, router.turn)),
    "round_robin": lambda router: round_robin(Choice((), router.inflight, router.turn)),
    "sessions": lambda _: random.choices(range(SERVERS), SESSIONS)[0],
}


class Result(NamedTuple):
    """What a run has found."""

    p50_s: float
    p99_s: float
    goodput: float


def simulate(policy: str, others: str, rate: float, seconds: float, seed: int) -> Result:  # noqa: C901
    """One run at so many requests a second in all."""
    dice = random.Random(seed)
    random.seed(seed)  # p2c draws from the module's own
    routers = [Router(POLICIES[policy]), Router(POLICIES[others])]
    servers = [Server(number) for number in range(SERVERS)]
    events: list[tuple[float, int, str, int]] = []
    order = 0
    waits: list[float] = []

    def add(at: float, kind: str, number: int = 0) -> None:
        nonlocal order
        order += 1
        heappush(events, (at, order, kind, number))

    def first_token(request: Request, now: float) -> None:
        if request.arrived > seconds / 10:  # after it has warmed up
            waits.append(now - request.arrived)

    add(0.0, "arrival")
    for number in range(SERVERS):
        add(number * SCRAPE_S / SERVERS, "scrape", number)
    while events:
        now, _, kind, number = heappop(events)
        if kind == "arrival":
            if now > seconds:
                continue
            add(now + dice.expovariate(rate), "arrival")
            prompt = dice.randint(100, 1000) if dice.random() < 0.85 else dice.randint(4000, 16_000)
            router = routers[dice.random() < OTHERS_SHARE]
            server = servers[router.pick()]
            server.waiting.append(Request(now, prompt, dice.randint(20, 300), router))
            if not server.is_busy:
                server.is_busy = True
                add(now, "step", server.number)
        elif kind == "scrape":
            for router in routers:
                router.reports[number] = servers[number].report(router.inflight[number])
            if now < seconds:
                add(now + SCRAPE_S, "scrape", number)
        else:
            server = servers[number]
            server.is_busy = bool(server.waiting or server.reading or server.decoding)
            if server.is_busy:
                add(server.step(now, first_token), "step", number)
    waits.sort()
    good = sum(wait <= GOOD_S for wait in waits)
    return Result(waits[len(waits) // 2], waits[len(waits) * 99 // 100], good / (seconds * 0.9))


def main() -> None:
    """Simulate every policy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=at_least(10), default=300)
    parser.add_argument("--seed", type=at_least(0), default=1)
    add_svg(parser)
    options = parser.parse_args()
    heads = ("other router", "requests/s", "p50 s", "p99 s", "goodput")
    about = f"simulated, {options.seconds} s each"
    table = Table("Balancing by reports", *heads, drawn=("p99 s",), about=about, corner="policy", width=16)
    for others in ("least_inflight", "sessions", "least_load"):
        for rate in (14, 17, 20):
            for policy in ("least_load", "least_inflight", "p2c", "round_robin"):
                got = simulate(policy, others, rate, options.seconds, options.seed)
                table.add(policy, others, rate, f"{got.p50_s:.2f}", f"{got.p99_s:.2f}", f"{got.goodput:.1f}")
    write_svg(options.svg, table)


if __name__ == "__main__":
    main()
