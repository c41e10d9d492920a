"""What a proxied request costs as things grow: connections, endpoints, models, and endpoints that are dead.

    python -m tests.bench.scaling [--rounds 3] [--seconds 3] [--svg FILE.svg] [GROUP...]

Groups are connections, endpoints, models and dead; all of them without any. The router runs as it does by default:
every feature is on, the cap doesn't bind. Before it stands one model server that costs next to nothing (go/upstream,
which `make peers` builds). It listens on many addresses of the loopback interface, each of which is an endpoint. wrk
asks for chat completions over connections that are kept, and asks again as soon as it is answered.

- connections: so many at once, one model with one endpoint. All are open before the first request is sent, and opening
  them counts for nothing.
- endpoints: one model with so many endpoints, 64 connections.
- models: so many models, each with an endpoint of its own, asked for in turn.
- dead: one model with 16 endpoints, of which so many are alive. The others refuse every connection, and no health
  check says so. A request that one of them fails is sent to another one.

How to read it:

- Figures are medians of the rounds. In each round every row of every group has its turn: the router is started, loaded
  for a second that doesn't count and then for `--seconds`, and ended.
- The columns `of` are shares of the first row of the group: the medians of the rounds' ratios, since the machine's
  speed may change from round to round. Only these mean anything elsewhere.
- `CPU us`: microseconds of processor time that the router's processes together, arbiter and workers, used for a
  request. A clock tick is 10 ms, so short turns of few requests say little.
- `errors`: answers that aren't 200 to 399 and connections that broke, of all rounds; it should be 0, but for dead
  endpoints: the retry budget may be used up in the first moments.

Everything is bounded in time, and every process that was started is ended, also when something fails.
"""

import argparse
import json
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.options import add_svg, at_least
from tests.bench.peers import load_before
from tests.bench.plot import write_svg
from tests.bench.routers import PATH, chat, unbinding
from tests.bench.side_by_side import Load, Program, conditions, go_program, in_turn, own_router, prepare, print_loads
from tests.support.ports import free_port

CONNECTIONS = 64


class Row(NamedTuple):
    """The clients and the routes of one row."""

    name: str
    connections: int = CONNECTIONS
    models: int = 1
    endpoints: int = 1
    """Of each model."""
    alive: int | None = None
    """How many of them, without health checks; None: all of them, with health checks."""
    opening_s: int = 0
    """For how long connections are open before anything is asked."""

    @property
    def answering(self) -> int:
        """How many endpoints of all models answer."""
        return self.models * (self.endpoints if self.alive is None else self.alive)


GROUPS = {
    "connections": [Row(f"{n} connections", connections=n, opening_s=1 + n // 1000) for n in (1, 64, 512, 5000)],
    "endpoints": [Row(f"{n} endpoints", endpoints=n) for n in (1, 16, 64, 256)],
    "models": [Row(f"{n} models", models=n) for n in (1, 200)],
    "dead": [Row(f"{n} of 16 alive", endpoints=16, alive=n) for n in (16, 4, 1)],
}
ADDRESSES = max(row.answering for rows in GROUPS.values() for row in rows)


def address(number: int) -> str:
    """The loopback address of this number, as go/upstream counts them."""
    return f"127.0.{number // 250}.{1 + number % 250}"


def routes(row: Row, port: int, dead: Sequence[str]) -> dict[str, Any]:
    """The routes file of a row. The model server listens on this port; `dead` are URLs that refuse."""
    alive = [f"http://{address(number)}:{port}" for number in range(row.answering)]
    each = row.answering // row.models
    models = [
        {"name": f"m{number}", "endpoints": [*alive[number * each : (number + 1) * each], *dead]}
        for number in range(row.models)
    ]
    without_checks = {"health_check": {"interval_s": 0}} if row.alive is not None else {}
    return {"models": [model | without_checks for model in models]}


def bodies(row: Row, rows: Sequence[Row]) -> list[str]:
    """What is asked in turn: as many bodies in every row of a group, since wrk sends a single one at less cost."""
    return [chat(f"m{number % row.models}") for number in range(max(other.models for other in rows))]


@contextmanager
def refusing(number: int) -> Iterator[list[str]]:
    """URLs of ports that are bound, so that no other program gets them, and refuse every connection."""
    socks = [socket.socket() for _ in range(number)]
    try:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        yield [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in socks]
    finally:
        for sock in socks:
            sock.close()


def require_listener(host: str, port: int) -> None:
    """Ends the bench if nothing listens there: endpoints that should be alive would be dead."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError as error:
        raise SystemExit(f"the model server is not on all addresses ({error}): `make peers` builds it anew") from None


def measure(row: Row, asked: Sequence[str], upstream: Program, folder: Path, seconds: int) -> Load:
    """One row's turn."""
    file = folder / "routes.json"
    with refusing(row.models * row.endpoints - row.answering) as dead:
        file.write_text(json.dumps(routes(row, upstream.port, dead)))
        router = own_router(folder, free_port(), ROUTES_FILE=file, MAX_CONCURRENCY=unbinding(row.connections))
        with router:
            router.wait_for_answer(PATH, asked[0])
            return load_before(router, upstream, asked, row.connections, seconds, row.opening_s)


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each row (default 3)")
    parser.add_argument("--seconds", type=at_least(1), default=3, help="measured seconds a turn (default 3)")
    add_svg(parser)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    args = parser.parse_args()
    for group in args.groups:
        if group not in GROUPS:
            parser.error(f"no group is called {group}; there are {', '.join(GROUPS)}")
    groups = {name: rows for name, rows in GROUPS.items() if name in args.groups or not args.groups}
    turns = {row.name: (row, bodies(row, rows)) for rows in groups.values() for row in rows}
    prepare(max(row.connections for row, _ in turns.values()))
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with go_program("upstream", folder, ADDRESSES=ADDRESSES) as upstream:
            upstream.wait_for_answer(PATH, chat("m0"))
            require_listener(address(ADDRESSES - 1), upstream.port)
            loads = in_turn(
                list(turns), args.rounds, lambda name: measure(*turns[name], upstream, folder, args.seconds)
            )
    about = conditions(f"medians of {args.rounds} rounds of {args.seconds} s")
    print(f"{about}; `of` is of the first row")
    tables = []
    for group, rows in groups.items():
        print(f"\n{group}\n")
        found = {row.name: loads[row.name] for row in rows}
        tables.append(print_loads(f"A proxied request: {group}", about, found, rows[0].name))
    write_svg(args.svg, *tables)


if __name__ == "__main__":
    main()
