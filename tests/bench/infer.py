"""POST /infer beside the least that it could cost: served without a delay, and refused at ten times the cap.

    python -m tests.bench.infer [--rounds 3] [--seconds 4] [--connections 64] [--cap 64] [--latency-ms 50]

The yardstick (go/yardstick, which `make peers` builds) is a plain net/http handler: it reads the same body, its cap is
a buffered channel, it gives the same answers and the same rejections, and does nothing else. Our router runs as it does
by default: every feature is on, the model is simulated. wrk keeps its connections and asks again as soon as it is
answered, also when it is refused. In each round each row has its turn: its program is started anew, loaded for a second
that doesn't count and then for `--seconds`.

How to read the first table, of a model without a delay and a cap that doesn't bind, `--connections` at a time:

- Figures are medians of the rounds; the columns `of` are the share of the yardstick's figure, the medians of the
  rounds' ratios. `CPU us` is microseconds of processor time of all the program's processes for a request. `errors`
  should be 0.

How to read the second, of a model that takes `--latency-ms`, so that at most cap / latency requests can be served a
second, and a cap that is full: as many clients as the cap lets in, and ten times as many.

- `200/s`: goodput. `of alone` is its share of the same program's without the overload, when nobody is refused: to hope
  for is 0.97. `of cap` is its share of cap / latency, which shows that the cap was full. Answers come in waves of as
  many as the cap, so a share is as exact as a wave is small beside a turn: 0.0125 by default, and less with more
  `--seconds`.
- `429/s`: rejections. `of yard` is their share of the yardstick's requests/s in the first table, and `of own` of
  the program's own. Clients and program share the machine's cores, and a refusal has what serving leaves of them.
- The yardstick's rows say what the machine and such clients allow: they cost it goodput too.
- `errors`: connections that broke and rejections that weren't a 429, by the program's own counts; it should be 0.

Everything is bounded in time, and every process that was started is ended, also when something fails.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import requests

from tests.bench.machine import CORES
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import unbinding
from tests.bench.side_by_side import (
    Load,
    Program,
    conditions,
    fetch_json,
    go_path,
    go_program,
    in_turn,
    own_router,
    prepare,
    print_loads,
    run_load,
    warm_up,
)
from tests.bench.table import OURS, Table, ratio
from tests.support.ports import free_port

PATH = "/infer"
BODY = json.dumps({"prompt": "How much is enough?"})
YARDSTICK = "yardstick"
OVERLOAD = 10
"""How many times the cap."""


class Case(NamedTuple):
    """A load: a program, its cap and its model, and how many clients."""

    program: str
    cap: int
    latency_ms: int
    clients: int

    @property
    def row(self) -> str:
        """Its name in the second table."""
        return f"{self.program}, {self.clients}"


class Turn(NamedTuple):
    """What came of it in one round."""

    load: Load
    refused_otherwise: int

    @property
    def errors(self) -> int:
        """What should not have happened."""
        return self.load.broken + self.refused_otherwise

    @property
    def served_rate(self) -> float:
        """Answers a second that were none of an error."""
        return (self.load.answered - self.load.refused) / self.load.seconds

    @property
    def refused_rate(self) -> float:
        """Refusals a second."""
        return self.load.refused / self.load.seconds


def free_case(name: str, connections: int) -> Case:
    """A program with no delay and a cap that doesn't bind."""
    return Case(name, unbinding(connections), 0, connections)


def full_cases(name: str, cap: int, latency_ms: int) -> list[Case]:
    """As many clients as the cap, and ten times as many."""
    return [Case(name, cap, latency_ms, clients) for clients in (cap, OVERLOAD * cap)]


def program(case: Case, folder: Path) -> Program:
    """The program of a case, to be started."""
    if case.program == YARDSTICK:
        return go_program(YARDSTICK, folder, CAP=case.cap, LATENCY_MS=case.latency_ms, GOMAXPROCS=CORES)
    return own_router(folder, free_port(), MAX_CONCURRENCY=case.cap, SIMULATED_LATENCY_MS=case.latency_ms)


def measure(case: Case, folder: Path, seconds: int) -> Turn:
    """One turn of a case."""
    with program(case, folder) as running:
        running.wait_for_answer(PATH, BODY)
        warm_up(running, PATH, [BODY], case.clients)
        before = rejections(case, running)
        load = run_load(running, PATH, [BODY], case.clients, seconds)
        known = rejections(case, running) - before  # with those that were on their way when wrk ended
    return Turn(load, max(0, load.refused - known))


def rejections(case: Case, running: Program) -> int:
    """How many 429s the program has counted."""
    if case.program == YARDSTICK:
        return int(fetch_json(f"{running.url}/counts")["refused"])
    page = requests.get(f"{running.url}/metrics", timeout=10).text
    counts = re.findall(r'^router_requests_total\{[^}]*code="429"[^}]*\} (\S+)$', page, re.MULTILINE)
    return round(sum(map(float, counts)))


def print_full(about: str, full: list[Case], turns: dict[str, list[Turn]], free: dict[str, list[Load]]) -> Table:
    """The second table. Cases of a program follow each other, the one without overload first."""
    cap, latency_ms = full[0].cap, full[0].latency_ms
    possible = cap * 1000 / latency_ms
    print(f"\ncap {cap}, model {latency_ms} ms: at most {possible:.0f} served/s\n")
    heads = ("200/s", "of alone", "of cap", "429/s", "of yard", "of own", "errors")
    heading = f"POST /infer, as many clients as the cap of {cap}, and {OVERLOAD} times as many"
    table = Table(heading, *heads, drawn=("200/s", "429/s"), about=f"{about}; model {latency_ms} ms")
    yards = [load.rate for load in free[YARDSTICK]]
    for case in full:
        rounds = turns[case.row]
        alone = next(other for other in full if other.program == case.program)
        served = [turn.served_rate for turn in rounds]
        refused = [turn.refused_rate for turn in rounds]
        table.add(
            case.row,
            f"{median(served):.0f}",
            ratio(served, [turn.served_rate for turn in turns[alone.row]]) if case is not alone else "",
            f"{median(served) / possible:.3f}",
            f"{median(refused):.0f}",
            ratio(refused, yards),
            ratio(refused, [load.rate for load in free[case.program]]),
            sum(turn.errors for turn in rounds),
        )
    return table


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each row (default 3)")
    parser.add_argument("--seconds", type=at_least(1), default=4, help="measured seconds a turn (default 4)")
    parser.add_argument("--connections", type=at_least(1), default=64, help="of the first table (default 64)")
    parser.add_argument("--cap", type=at_least(1), default=64, help="of the second table (default 64)")
    parser.add_argument("--latency-ms", type=at_least(1), default=50, help="of the second table, ms (default 50)")
    add_svg(parser)
    args = parser.parse_args()
    go_path(YARDSTICK)
    prepare(max(args.connections, OVERLOAD * args.cap))
    free = {name: free_case(name, args.connections) for name in (YARDSTICK, OURS)}
    full = [case for name in (YARDSTICK, OURS) for case in full_cases(name, args.cap, args.latency_ms)]
    cases = free | {case.row: case for case in full}
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        turns = in_turn(list(cases), args.rounds, lambda row: measure(cases[row], folder, args.seconds))
    about = conditions(f"medians of {args.rounds} rounds of {args.seconds} s")
    print(f"{about}; no delay, {args.connections} connections\n")
    loads = {name: [turn.load for turn in turns[name]] for name in free}
    first = print_loads(f"POST /infer, {args.connections} connections", about, loads, YARDSTICK)
    write_svg(args.svg, first, print_full(about, full, turns, loads))


if __name__ == "__main__":
    main()
