"""A router for a replay: built as the server builds its own, with this process as its only worker, and no socket."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec.structs import fields, replace

from app.bootstrap import Router, build_router
from app.cli.access_log import Logged
from app.config.discovered import source_of
from app.config.route_schema import Endpoint, Model, Routes, Version
from app.config.routes_file import parse_routes
from app.config.routes_file.source import TLS_MEMBERS
from app.config.routes_source import read_file
from app.config.settings import load_settings
from app.errors import RoutesError

_OF_CALLERS = ("KEYS_FILE", "JWT_", "TENANT_HEADER", "TRUSTED_PROXIES", "TLS_")
"""How the variables begin that say who may connect, and how: nobody does, and their files may be elsewhere."""


def not_modelled(routes: Routes) -> list[str]:
    """Returns what these routes would do and a replay does not, in words."""
    models = routes.models
    several = any(len(version.endpoints) > 1 for model in models for version in model.versions)
    by_key = sorted({model.balancing for model in models} & {"session", "prefix", "prefix_hash"})
    found = {
        "retries": several,
        "fallbacks to other models": any(model.fallback for model in models),
        "waits for an endpoint (no_endpoint_wait_s)": any(model.no_endpoint_wait_s for model in models),
        f"keys and prompts, which are not in a log ({', '.join(by_key)})": bool(by_key),
        "loads that endpoints report (least_load)": any(model.balancing == "least_load" for model in models),
        "health checks": any(version.endpoints for model in models for version in model.versions),
        "limits of tenants": True,
    }
    return [words for words, concerns in found.items() if concerns]


@contextmanager
def replay_router(environ: Mapping[str, str], requests: Sequence[Logged]) -> Iterator[Router]:
    """Yields the router of this environment. Credentials and keys are left out: nothing is sent, and nobody connects.

    A version whose endpoints would be discovered has those that the requests of its model had. Raises a RouterError.
    """
    with TemporaryDirectory() as folder:
        environ = {name: value for name, value in environ.items() if not name.startswith(_OF_CALLERS)}
        environ |= {"INITIAL_HEALTH": "healthy", "WEB_CONCURRENCY": "1", "PROMETHEUS_MULTIPROC_DIR": ""}
        given = environ.get("ROUTES_FILE", "").strip()
        if given:
            routes = parse_routes(read_file(Path(given)), given)
            file = Path(folder, "routes.json")
            file.write_bytes(msgspec.json.encode(_written(_of_log(routes, requests))))
            environ["ROUTES_FILE"] = str(file)
        router = build_router(load_settings(environ, 1), {})
        try:
            _become_worker(router)
            yield router
        finally:
            router.metrics_directory.leave()
            for fd in router.table.eventfds:
                os.close(fd)


def _become_worker(router: Router) -> None:
    """Do what a worker of the server does when it is forked."""
    claim = router.slots.claim()
    router.slots.occupy(claim)
    for part in (router.counters, router.traffic, router.metric_files):
        part.attach(claim.slot)
    router.limiter.attach(claim.slot)


def _of_log(routes: Routes, requests: Sequence[Logged]) -> Routes:
    return replace(routes, models=tuple(_model(model, requests) for model in routes.models))


def _model(model: Model, requests: Sequence[Logged]) -> Model:
    seen = sorted({one.endpoint for one in requests if one.model == model.name and one.endpoint})
    # Without their keys, and without reports of loads, nothing but the requests in flight is known.
    return replace(model, versions=tuple(_version(model, version, seen) for version in model.versions))


def _version(model: Model, version: Version, seen: Sequence[str]) -> Version:
    version = replace(version, credential_env=None, credential_file=None)
    source = source_of(version)
    if source is None:
        endpoints = (replace(one, credential_env=None, credential_file=None) for one in version.endpoints)
        return replace(version, endpoints=tuple(endpoints))
    if not seen:
        raise RoutesError(f"{model.name}: its endpoints are discovered ({source.key}), and the log names none of them")
    found = tuple(Endpoint(url=url) for url in seen)
    without = dict.fromkeys(("dns", "service", "port", *TLS_MEMBERS))
    return replace(version, **without, scheme="http", endpoints=found)


def _written(value: Any) -> Any:
    """Returns a record as a routes file has it: without what is a default, which rules may forbid to be written."""
    if isinstance(value, msgspec.Struct):
        members = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: _written(held) for one, held in members if one.required or held != one.default}
    return [_written(item) for item in value] if isinstance(value, tuple) else value
