"""What the record of a request costs the request: noting what its endpoint was chosen among, and writing all of it.

    python -m tests.bench.records [--requests 2000]

It prints microseconds of processor time for each request, the least of many short runs, with endpoints that all can be
chosen, as it is for an ordinary request. A record is to cost under 1 us in the form that is shipped, the compiled one.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from app.admission.permit import Permit
from app.api.exchange import Exchange
from app.api.request_recorder import RequestRecorder
from app.bootstrap import shared_table
from app.compiled import form
from app.observability.request_record import POLICY_NUMBERS
from app.routing.attempt_record import AttemptRecord, PoolMembers
from app.routing.candidates import words_of
from app.shared_memory.request_ring import RequestRing
from app.shared_memory.table import name_hash

_RUNS = 50


def exchange_of(endpoints: int) -> Exchange:
    """Returns a request that was served by one of so many endpoints."""
    exchange = Exchange({"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/chat/completions"})
    exchange.route, exchange.model, exchange.status = "/v1/chat/completions", "llama", 200
    issuer: Any = None
    exchange.permit = Permit(issuer, 64, 12)
    hashes = words_of(name_hash(f"http://10.0.0.{number}:8000") for number in range(endpoints))
    pool = PoolMembers(endpoints, hashes, POLICY_NUMBERS["least_inflight"])
    exchange.attempts.append(AttemptRecord(pool, [number << 4 for number in range(endpoints)], "200", "", hashes[0]))
    return exchange


def microseconds(run: Callable[[int], None], count: int) -> float:
    """Returns how long one of so many takes, at best."""
    best = float("inf")
    for _ in range(_RUNS):
        began = time.process_time()
        run(count)
        best = min(best, time.process_time() - began)
    return best / count * 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000)
    count = parser.parse_args().requests
    ring = RequestRing(shared_table(64, 0))
    ring.attach(0)
    write = RequestRecorder(ring).record
    print(f"{form()}: us a record")
    for endpoints in (1, 4, 8):
        exchange = exchange_of(endpoints)

        def run(times: int, exchange: Exchange = exchange) -> None:
            for _ in range(times):
                write(exchange, 0.5)

        print(f"{endpoints} endpoints: {microseconds(run, count):.2f}")


if __name__ == "__main__":
    main()
