"""What it costs to count tokens and the times between them: streams and chats with it, and without.

    python -m tests.bench.signals [--streams 300] [--token-ms 20] [--tokens 100] [--rounds 5] [--seconds 3]

The real router before a model server that costs nothing (go/upstream, from `make peers`), once as it is, and once
without the meters of app/api/stream_meter.py and without the counts of each model (without.py says how). In each round
both have their turn: event streams as in streams.py, and then chat completions from wrk as in tricks.py. PYTHONPATH
names the form that is measured: `build/compiled`, or else this checkout, uncompiled.

How to read it: `stream us` are microseconds of the router's processor time for an event of a stream, and `chat us` for
a chat completion, medians of the rounds; `x all` are the medians of the rounds' ratios to the first row. 0.97 says that
the signals take 3 %. `broken` should be 0.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.machine import CORES
from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import BODY, MODEL, PATH, unbinding
from tests.bench.side_by_side import Program, in_turn, prepare, run_load, warm_up
from tests.bench.streams import WARM_UP_TOKENS, Streams, model_server, read_streams
from tests.bench.table import Table, ratio
from tests.support.ports import free_port
from tests.support.router import GUNICORN, ROOT

WAYS = ("all", "signals")
CONNECTIONS = 64


class Turn(NamedTuple):
    """What one turn cost."""

    stream_us: float
    chat_us: float
    broken: int


def measure(way: str, upstream: Program, folder: Path, streams: Streams, seconds: int) -> Turn:
    """One turn of the router in this way."""
    port = free_port()
    settings: dict[str, object] = {
        "BIND": f"127.0.0.1:{port}",
        "MODEL_REF": MODEL,
        "BACKENDS": upstream.url,
        "LOG_LEVEL": "error",
    }
    settings |= {"WEB_CONCURRENCY": CORES, "MAX_CONCURRENCY": unbinding(streams.number), "GRACEFUL_TIMEOUT_S": 5}
    paths = filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))
    command = [GUNICORN, "--chdir", str(ROOT), "-c", "python:tests.bench.without"]
    with Program(command, folder, port, **settings, TRICK=way, PYTHONPATH=os.pathsep.join(paths)) as router:
        router.wait_for_answer(PATH, BODY)
        read_streams(router, streams._replace(tokens=WARM_UP_TOKENS))
        before = router.cpu_seconds()
        seen = read_streams(router, streams)
        stream_s = router.cpu_seconds() - before
        warm_up(router, PATH, [BODY], CONNECTIONS)
        load = run_load(router, PATH, [BODY], CONNECTIONS, seconds)
    return Turn(1e6 * stream_s / (streams.number * streams.tokens), load.cpu_us, seen["broken"] + load.errors)


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=at_least(1), default=300, help="at once (default 300)")
    parser.add_argument("--token-ms", type=at_least(0), default=20, help="between two tokens, ms (default 20)")
    parser.add_argument("--tokens", type=at_least(1), default=100, help="tokens a stream (default 100)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each (default 5)")
    parser.add_argument("--seconds", type=at_least(1), default=3, help="of chat completions a turn (default 3)")
    add_svg(parser)
    args = parser.parse_args()
    streams = Streams(args.streams, args.tokens, args.token_ms)
    prepare(streams.number)
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with model_server(folder, streams) as upstream:
            upstream.wait_for_answer(PATH, BODY)
            turns = in_turn(WAYS, args.rounds, lambda way: measure(way, upstream, folder, streams, args.seconds))
    about = f"{streams.number} streams; medians of {args.rounds} rounds"
    print(f"{about}\n")
    heads = ("stream us", "x all", "chat us", "x all", "broken")
    table = Table("What is left without the signals", *heads, drawn=heads[:1], about=about, corner="without")
    first = turns[WAYS[0]]
    for way, each in turns.items():
        table.add(
            "nothing" if way == WAYS[0] else way,
            f"{median(turn.stream_us for turn in each):.2f}",
            ratio([turn.stream_us for turn in each], [turn.stream_us for turn in first]),
            f"{median(turn.chat_us for turn in each):.1f}",
            ratio([turn.chat_us for turn in each], [turn.chat_us for turn in first]),
            sum(turn.broken for turn in each),
        )
    write_svg(args.svg, table)


if __name__ == "__main__":
    main()
