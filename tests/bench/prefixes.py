"""How often a prompt goes where its beginning is cached, and how even the load is: our policies, and vllm-router's.

    python -m tests.bench.prefixes [--turns 80] [--clients 24] [NAME ...]

Starts each router in turn before four model servers, which run in this process. Each has a prefix cache like vLLM's:
blocks of 64 bytes, each known by a hash of all bytes up to its end, those used longest ago dropped first. A response
takes 20 ms, and 1 ms for every 400 bytes of the prompt that are not cached; a server does that work for one request at
a time, as a GPU's prefill does. Clients play conversations (conversations.py), each turn after the response to the one
before, until each has had its turns. All routers get the same conversations from the same seed.

How to read it: `cached` is the share of the prompts' bytes that were found in the cache. `most/mean` is the number of
requests of the server that got most, divided by the mean. `turns/s` is what both are for.
"""

import argparse
import json
import random
import socket
import tempfile
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402
import requests  # noqa: E402
from gevent.lock import BoundedSemaphore  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from tests.bench.conversations import conversation, system_prompts  # noqa: E402
from tests.bench.machine import CORES  # noqa: E402
from tests.bench.options import add_svg, at_least  # noqa: E402
from tests.bench.plot import write_svg  # noqa: E402
from tests.bench.routers import PEERS, UNBOUND  # noqa: E402
from tests.bench.side_by_side import Program, installed, own_router  # noqa: E402
from tests.bench.table import Table  # noqa: E402
from tests.support.ports import free_port  # noqa: E402

SERVERS = 4
BLOCK_BYTES = 64
CACHE_BLOCKS = 20_000
RESPONSE_S = 0.020
BYTES_A_SECOND = 400_000
PATH = "/v1/chat/completions"
OURS = ("prefix", "prefix_hash", "prefix_hash 1 KiB", "least_inflight")
THEIRS = "vllm-router cache_aware"
RESPONSE = json.dumps({"object": "chat.completion", "choices": [{"message": {"content": "Enough."}}]}).encode()


class ModelServer:
    """A model server with a prefix cache, that records what it saw."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.cached = 0
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._prefill = BoundedSemaphore()
        self._server = WSGIServer(("127.0.0.1", 0), self._serve, log=None)
        self._server.start()
        self._server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are sent apart
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop(1)

    def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(RESPONSE)))])
        if environ["REQUEST_METHOD"] != "POST":
            return [RESPONSE]  # a health check
        messages = json.loads(environ["wsgi.input"].read())["messages"]
        prompt = "".join(f"<{one['role']}>{one['content']}" for one in messages).encode()
        with self._prefill:
            missing = self._look_up(prompt)
            gevent.sleep(missing / BYTES_A_SECOND)
        gevent.sleep(RESPONSE_S)
        return [RESPONSE]

    def _look_up(self, prompt: bytes) -> int:
        """Returns how many bytes of a prompt are not cached; now they are."""
        self.requests += 1
        self.bytes += len(prompt)
        digest, cached, goes_on = 0, 0, True
        for start in range(0, len(prompt) - BLOCK_BYTES + 1, BLOCK_BYTES):
            digest = zlib.crc32(prompt[start : start + BLOCK_BYTES], digest) | digest << 32 & 0xFFFFFFFF00000000
            goes_on = goes_on and digest in self._blocks
            cached += BLOCK_BYTES * goes_on
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > CACHE_BLOCKS:
            self._blocks.popitem(last=False)
        self.cached += cached
        return len(prompt) - cached


@contextmanager
def started(name: str, urls: list[str], folder: Path) -> Iterator[str]:
    """Start the router of this name, and return its URL once it responds."""
    port = free_port()
    if name == THEIRS:
        command = [str(installed(PEERS["vllm-router"].program)), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--prometheus-port", str(free_port()), "--max-concurrent-requests", str(UNBOUND)]
        command += ["--worker-urls", *urls, "--policy", "cache_aware", "--log-level", "error"]
        router = Program(command, folder, port, TOKIO_WORKER_THREADS=CORES)
    else:
        policy, _, size = name.partition(" ")
        model = {"name": "m", "balancing": policy, "endpoints": urls, **({"prefix_bytes": 1024} if size else {})}
        file = folder / "routes.json"
        file.write_text(json.dumps({"models": [model]}))
        router = own_router(folder, port, ROUTES_FILE=file, MAX_CONCURRENCY=1000)
    with router:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}]})
        router.wait_for_answer(PATH, body)
        yield router.url


def play(url: str, number: int, turns: int, failed: list[int]) -> None:
    """One client: conversation after conversation, so many turns in all."""
    dice, prompts = random.Random(number), system_prompts(0)
    session = requests.Session()
    while True:
        for messages in conversation(dice, prompts):
            if not turns:
                return
            turns -= 1
            body = {"model": "m", "messages": [message._asdict() for message in messages]}
            response = session.post(url + PATH, json=body, timeout=60)
            failed[0] += response.status_code != 200


def main() -> None:
    """Measure every router and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=at_least(1), default=80)
    parser.add_argument("--clients", type=at_least(1), default=24)
    parser.add_argument("names", nargs="*", help=f"of {', '.join((*OURS, THEIRS))}; default: all")
    add_svg(parser)
    options = parser.parse_args()
    about = f"{options.clients} clients, {options.turns} turns each"
    heads = ("turns/s", "cached", "most/mean", "failed")
    table = Table("Where prompts go", *heads, drawn=("turns/s", "cached"), about=about, corner="policy")
    for name in options.names or (*OURS, THEIRS):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            servers = [ModelServer() for _ in range(SERVERS)]
            for server in servers:
                stack.callback(server.stop)
            with started(name, [server.url for server in servers], Path(folder)) as url:
                failed, began = [0], time.monotonic()
                gevent.joinall([gevent.spawn(play, url, n, options.turns, failed) for n in range(options.clients)])
                took_s = time.monotonic() - began
        total = sum(server.requests for server in servers)
        cached = sum(server.cached for server in servers) / sum(server.bytes for server in servers)
        most = max(server.requests for server in servers) / (total / SERVERS)
        table.add(name, f"{total / took_s:.0f}", f"{cached:.3f}", f"{most:.2f}", failed[0])
    write_svg(options.svg, table)


if __name__ == "__main__":
    main()
