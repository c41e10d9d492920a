"""Streams beside other routers: many event streams at once through each, token by token from the same model server.

    python -m tests.bench.streams [--streams 300] [--token-ms 20] [--tokens 100] [--rounds 3] [NAME...]

Names are direct (no router), envoy, vllm-router, sglang-router and ours; without any, all but sglang-router. The rows
are compared with direct and vllm-router, so these two always run. `make peers` installs what isn't ours.

The model server (go/upstream) sends `--tokens` events, `--token-ms` apart, on each stream. The client (go/streams)
opens all streams at the same moment, which is the worst there is, reads each to its end, and counts as broken any that
has not every token and the end that OpenAI's streams have. Before the measured ones, as many streams of two tokens warm
the router up. Our router runs as it does by default: every feature is on, the cap doesn't bind.

How to read it:

- Figures are medians of the rounds; in each round every router has its turn. Ratios and differences are medians of the
  rounds' own, since the machine's speed may change from round to round.
- `CPU s`: processor seconds that the router's processes used in a round. `of vllm` is its share of vllm-router's.
- `first`: p50 of the milliseconds from the opening of a stream to its first token. `+ direct` is what the router adds.
- `gap`: p99 of the milliseconds between two tokens of a stream, which is `--token-ms` at the best. `+ direct` as above.
- `broken`: streams of all rounds; it should be 0.

Everything is bounded in time, and every process that was started is ended, also when something fails.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import DIRECT, MODEL, NAMES, PATH, add_names, checked_names, started, title
from tests.bench.side_by_side import Program, conditions, go_path, go_program, in_turn, prepare
from tests.bench.table import Table, difference, ratio

COMPARED = "vllm-router"
DEFAULT = tuple(name for name in NAMES if name != "sglang-router")
WARM_UP_TOKENS = 2


class Streams(NamedTuple):
    """How many at once, and what each consists of."""

    number: int
    tokens: int
    token_ms: int


class Streaming(NamedTuple):
    """What the clients of one turn saw, and what the router spent on it."""

    cpu_s: float
    first_ms: float
    gap_ms: float
    broken: int
    why: str


def model_server(folder: Path, streams: Streams) -> Program:
    """The one whose streams are measured, to be started."""
    return go_program("upstream", folder, TOKEN_MS=streams.token_ms, TOKENS=streams.tokens)


def measure(name: str, upstream: Program, folder: Path, streams: Streams) -> Streaming:
    """One router's turn."""
    with started(name, upstream, streams.number, folder) as router:
        read_streams(router, streams._replace(tokens=WARM_UP_TOKENS))
        cpu_before = router.cpu_seconds()
        seen = read_streams(router, streams)
        cpu = router.cpu_seconds() - cpu_before if name != DIRECT else 0.0
    return Streaming(cpu, seen["first_p50_ms"], seen["gap_p99_ms"], seen["broken"], seen.get("why", ""))


def read_streams(router: Program, streams: Streams) -> dict[str, Any]:
    """Open the streams, wait for their end, and answer what the client reports."""
    seconds = 30 + 3 * streams.tokens * streams.token_ms // 1000
    command = [str(go_path("streams")), "-url", router.url + PATH, "-model", MODEL]
    command += ["-streams", str(streams.number), "-tokens", str(streams.tokens), "-timeout", f"{seconds}s"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 10)
    if run.returncode:
        raise SystemExit(f"the client of the streams failed:\n{run.stderr}")
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def print_table(heading: str, about: str, streams: dict[str, list[Streaming]]) -> Table:
    """A row for each router, and why streams broke, if any did."""
    heads = ("CPU s", "of vllm", "first ms", "+ direct", "gap ms", "+ direct", "of vllm", "broken")
    table = Table(heading, *heads, drawn=("CPU s", "first ms", "gap ms"), about=about)
    costs = {name: [turn.cpu_s for turn in turns] for name, turns in streams.items()}
    firsts = {name: [turn.first_ms for turn in turns] for name, turns in streams.items()}
    gaps = {name: [turn.gap_ms for turn in turns] for name, turns in streams.items()}
    for name, turns in streams.items():
        table.add(
            title(name),
            f"{median(costs[name]):.2f}" if name != DIRECT else "",
            ratio(costs[name], costs[COMPARED]),
            f"{median(firsts[name]):.1f}",
            difference(firsts[name], firsts[DIRECT]) if name != DIRECT else "",
            f"{median(gaps[name]):.1f}",
            difference(gaps[name], gaps[DIRECT]) if name != DIRECT else "",
            ratio(gaps[name], gaps[COMPARED]),
            sum(turn.broken for turn in turns),
        )
    for name, turns in streams.items():
        for why in {turn.why for turn in turns} - {""}:
            print(f"{name}: {why}")
    return table


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=at_least(1), default=300, help="at once (default 300)")
    parser.add_argument("--token-ms", type=at_least(0), default=20, help="between two tokens, ms (default 20)")
    parser.add_argument("--tokens", type=at_least(1), default=100, help="tokens a stream (default 100)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each router (default 3)")
    add_svg(parser)
    add_names(parser, DEFAULT)
    args = parser.parse_args()
    names = checked_names(parser, [DIRECT, COMPARED, *args.names] if args.names else [], DEFAULT)
    go_path("streams")
    asked = Streams(args.streams, args.tokens, args.token_ms)
    prepare(asked.number)
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with model_server(folder, asked) as upstream:
            streams = in_turn(names, args.rounds, lambda name: measure(name, upstream, folder, asked))
    about = conditions(f"medians of {args.rounds} rounds of {asked.tokens} tokens, {asked.token_ms} ms apart")
    print(f"{about}; {asked.number} streams at once\n")
    write_svg(args.svg, print_table(f"{asked.number} event streams at once", about, streams))


if __name__ == "__main__":
    main()
