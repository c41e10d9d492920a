"""A proxied request beside other routers: the same model server behind each, the same load before each.

    python -m tests.bench.peers [--rounds 3] [--seconds 4] [--latency MS] [--connections 64] [--image-kib N]
                               [--against NAME] [NAME...]

Names are direct (no router), envoy, vllm-router, sglang-router and ours; all of them without any. `make peers`
installs those that aren't ours. The model server (go/upstream) costs next to nothing and answers at once, or after
`--latency` milliseconds. wrk asks it for chat completions through each router, over connections that are kept, and asks
again as soon as it is answered. With `--image-kib` each request carries an image of that size in base64. Our router
runs as it does by default: every feature is on, the cap doesn't bind.

How to read it:

- Figures are medians of the rounds. In each round every router has its turn: it is started, loaded for a second that
  doesn't count and then for `--seconds`, and ended.
- The columns `of` are shares of the figure of `--against`, or of the first row: the medians of the rounds' ratios,
  since the machine's speed may change from round to round. Only these mean anything elsewhere.
- `requests/s`: more is better; clients, model server and router share the machine's cores. `p50` and `p99` are
  milliseconds from request to answer.
- `CPU us`: microseconds of processor time that all the router's processes together used for a request. `direct` has no
  router.
- `errors`: answers that aren't 200 to 399 and connections that broke, of all rounds; it should be 0.

A router that answers more often than it asks the model server ends the bench. Everything is bounded in time, and every
process that was started is ended, also when something fails.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.options import add_svg, at_least
from tests.bench.plot import write_svg
from tests.bench.routers import BODY, DIRECT, MODEL, NAMES, PATH, add_names, checked_names, started, title
from tests.bench.side_by_side import (
    Load,
    Program,
    conditions,
    fetch_json,
    go_program,
    in_turn,
    prepare,
    print_loads,
    run_load,
    warm_up,
)


def chat_with_image(kib: int) -> str:
    """A chat completion with an image of this size, for side_by_side.lua to fill in."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,FILL({kib * 1024})"}}
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [image]}]})


def measure(name: str, upstream: Program, folder: Path, body: str, connections: int, seconds: int) -> Load:
    """One router's turn."""
    with started(name, upstream, connections, folder) as router:
        load = load_before(router, upstream, [body], connections, seconds)
    return load if name != DIRECT else load._replace(cpu_s=0.0)  # there is no router


def load_before(
    router: Program, upstream: Program, bodies: Sequence[str], connections: int, seconds: int, opening_s: int = 0
) -> Load:
    """What a router does under load, after a warm-up; ends the bench if it answers without asking the model server."""
    warm_up(router, PATH, bodies, connections)
    before = fetch_json(f"{upstream.url}/counts")["total"]
    load = run_load(router, PATH, bodies, connections, seconds, opening_s)
    reached = fetch_json(f"{upstream.url}/counts")["total"] - before
    if reached < load.answered - load.refused:
        raise SystemExit(f"{router.url}: of {load.answered} requests answered, {reached} reached the model server")
    return load


def main() -> None:
    """See the module's opening lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="turns of each router (default 3)")
    parser.add_argument("--seconds", type=at_least(1), default=4, help="measured seconds a turn (default 4)")
    parser.add_argument("--latency", type=at_least(0), default=0, metavar="MS", help="the model's, ms (default 0)")
    parser.add_argument("--connections", type=at_least(1), default=64, help="requests at a time (default 64)")
    parser.add_argument("--image-kib", type=at_least(0), default=0, help="of an image in each request (default none)")
    parser.add_argument("--against", choices=NAMES, help="whose figures the ratios are of (default: the first)")
    add_svg(parser)
    add_names(parser)
    args = parser.parse_args()
    names = checked_names(parser, args.names)
    against = args.against or names[0]
    if against not in names:
        parser.error(f"{against} must be measured too to be compared with")
    prepare(args.connections)
    body = chat_with_image(args.image_kib) if args.image_kib else BODY
    with tempfile.TemporaryDirectory(prefix="router-bench-") as temporary:
        folder = Path(temporary)
        with go_program("upstream", folder, LATENCY_MS=args.latency) as upstream:
            loads = in_turn(
                names,
                args.rounds,
                lambda name: measure(name, upstream, folder, body, args.connections, args.seconds),
            )
    about = conditions(f"medians of {args.rounds} rounds of {args.seconds} s; model {args.latency} ms")
    print(f"{about}; {args.connections} connections; `of` is of {against}'s\n")
    loads_by_title = {title(name): rounds for name, rounds in loads.items()}
    image = f" with {args.image_kib} KiB each" if args.image_kib else ""
    heading = f"Chat completions{image}, {args.connections} connections"
    write_svg(args.svg, print_loads(heading, about, loads_by_title, title(against)))


if __name__ == "__main__":
    main()
