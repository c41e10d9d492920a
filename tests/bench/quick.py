"""The router beside vllm-router and a plain Go handler, in under two minutes: to run before a change, and after it.

    python -m tests.bench.quick [--rounds 3] [--svg FILE.svg]

It is a short form of three benches, with their loads and their programs (see there): a chat completion without model
delay at 64 connections (peers), 300 event streams of 20 ms a token (streams), POST /infer of a simulated model without
a delay, and at ten times a cap of 64 with one of 50 ms (infer). `make peers` installs what isn't ours.

How to read it:

- `ours` and `other` are medians of the rounds. In each round every program has its turn with every load.
- `of other` is the median of the rounds' ratios of ours to the other's, `least` and `most` the extremes of those: where
  they lie far apart the machine was busy with something else. Only ratios mean anything elsewhere.
- `to reach` is a bound for `of other`; a row without one is there to explain the others.
- `CPU` is processor time of all the processes of a router.
- `gap p99, over direct` is how many milliseconds a router adds to the p99 of the time between two tokens; it is to be
  1 at most. It has no ratio, since both may be about 0.
- The last two rows: rejections are compared with what the Go handler serves a second without a delay, and our goodput
  with ten times as many clients as the cap lets in, with our own with as many as that.
- The last line has what went wrong in all rounds: errors, broken streams and connections. It should be 0.

Turns are short, so a difference of some hundredths says nothing: the three benches say more, in more time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from tests.bench import infer, peers, streams
from tests.bench.infer import YARDSTICK
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import BODY, DIRECT, PEERS
from tests.bench.side_by_side import Load, conditions, go_path, installed, prepare
from tests.bench.streams import COMPARED, Streaming, Streams
from tests.bench.table import OURS, Table, ratio, ratios

CONNECTIONS = 64
CHAT_SECONDS = 2
INFER_SECONDS = 2
STREAMS = Streams(300, 50, 20)
CAP = 64
LATENCY_MS = 50
FREE = {name: infer.free_case(name, CONNECTIONS) for name in (YARDSTICK, OURS)}
AT_CAP, OVER_CAP = infer.full_cases(OURS, CAP, LATENCY_MS)
INFER = {**FREE, AT_CAP.row: AT_CAP, OVER_CAP.row: OVER_CAP}

Turn = TypeVar("Turn")
Turns = dict[str, list[Turn]]


class Comparison(NamedTuple):
    """A row: figures of each round, ours and the other's."""

    name: str
    ours: Sequence[float]
    other: Sequence[float]
    to_reach: str = ""
    digits: int = 0
    """Behind the point."""
    has_ratio: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        """What is printed under HEADS."""
        figures = [f"{median(values):.{self.digits}f}" for values in (self.ours, self.other)]
        found = ratios(self.ours, self.other) if self.has_ratio else []
        shares = [ratio(self.ours, self.other), f"{min(found):.2f}", f"{max(found):.2f}"] if found else [""] * 3
        return *figures, *shares, self.to_reach


HEADS = ("ours", "other", "of other", "least", "most", "to reach")


def chat_rows(turns: Turns[Load]) -> list[Comparison]:
    """A proxied request."""
    row = _comparing(turns[OURS], turns[COMPARED])
    return [
        row("chat requests/s", lambda load: load.rate, ">= 1.25", 0),
        row("chat CPU us", lambda load: load.cpu_us, "<= 0.80", 1),
        row("chat p50 ms", lambda load: load.p50_ms, "", 2),
        row("chat p99 ms", lambda load: load.p99_ms, "<= 1.00", 2),
    ]


def stream_rows(turns: Turns[Streaming]) -> list[Comparison]:
    """Streams, through a router and through none."""

    def added(name: str) -> list[float]:
        return [turn.gap_ms - direct.gap_ms for turn, direct in zip(turns[name], turns[DIRECT], strict=True)]

    row = _comparing(turns[OURS], turns[COMPARED])
    return [
        row("streams CPU s", lambda turn: turn.cpu_s, "<= 1.00", 2),
        row("first event ms", lambda turn: turn.first_ms, "", 1),
        row("gap p99 ms", lambda turn: turn.gap_ms, "", 1),
        Comparison("gap p99, over direct", added(OURS), added(COMPARED), "", 1, has_ratio=False),
    ]


def infer_rows(turns: Turns[infer.Turn]) -> list[Comparison]:
    """A simulated request without a delay beside the Go handler's, and a cap that is overrun."""
    row = _comparing(turns[OURS], turns[YARDSTICK])
    refused = [turn.refused_rate for turn in turns[OVER_CAP.row]]
    served, alone = ([turn.served_rate for turn in turns[case.row]] for case in (OVER_CAP, AT_CAP))
    return [
        row("/infer requests/s", lambda turn: turn.load.rate, ">= 1.00", 0),
        row("/infer CPU us", lambda turn: turn.load.cpu_us, "", 1),
        row("/infer p99 ms", lambda turn: turn.load.p99_ms, "", 2),
        Comparison("429/s at 10 x the cap", refused, [turn.load.rate for turn in turns[YARDSTICK]], ">= 1.00"),
        Comparison("200/s at 10 x the cap", served, alone, ">= 0.98"),
    ]


def _comparing(
    ours: Sequence[Turn], other: Sequence[Turn]
) -> Callable[[str, Callable[[Turn], float], str, int], Comparison]:
    """What makes a row of one figure of these turns."""

    def row(name: str, figure: Callable[[Turn], float], to_reach: str, digits: int) -> Comparison:
        return Comparison(name, [*map(figure, ours)], [*map(figure, other)], to_reach, digits)

    return row


def errors(chat: Turns[Load], streamed: Turns[Streaming], inferred: Turns[infer.Turn]) -> int:
    """What should not have happened, in all turns; a rejection is an error where nobody is to be rejected."""
    free = sum(turn.load.errors for name in FREE for turn in inferred[name])
    full = sum(turn.errors for case in (AT_CAP, OVER_CAP) for turn in inferred[case.row])
    loads = sum(load.errors for turns in chat.values() for load in turns)
    return free + full + loads + sum(turn.broken for turns in streamed.values() for turn in turns)


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each program and load (default 3)")
    add_svg(parser)
    args = parser.parse_args()
    for name in ("upstream", "streams", YARDSTICK):
        go_path(name)
    installed(PEERS[COMPARED].program)
    prepare(max(STREAMS.number, OVER_CAP.clients))
    began = time.monotonic()
    chat: Turns[Load] = {name: [] for name in (COMPARED, OURS)}
    streamed: Turns[Streaming] = {name: [] for name in (DIRECT, COMPARED, OURS)}
    inferred: Turns[infer.Turn] = {name: [] for name in INFER}
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with streams.model_server(folder, STREAMS) as upstream:
            for _ in range(args.rounds):
                for name, loads in chat.items():
                    loads.append(peers.measure(name, upstream, folder, BODY, CONNECTIONS, CHAT_SECONDS))
                for name, seen in streamed.items():
                    seen.append(streams.measure(name, upstream, folder, STREAMS))
                for name, turns in inferred.items():
                    turns.append(infer.measure(INFER[name], folder, INFER_SECONDS))
    about = conditions(f"medians of {args.rounds} rounds; beside {COMPARED}, and Go for /infer")
    print(f"{about}; {time.monotonic() - began:.0f} s\n")
    table = Table("In short: ours beside others", *HEADS, drawn=("of other",), about=about, width=10)
    for row in (*chat_rows(chat), *stream_rows(streamed), *infer_rows(inferred)):
        table.add(row.name, *row.cells)
    print(f"\nerrors: {errors(chat, streamed, inferred)}")
    write_svg(args.svg, table)


if __name__ == "__main__":
    main()
