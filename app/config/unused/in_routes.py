"""Members of a routes file without effect. Those that the file leaves out are yielded too."""

from collections.abc import Iterator

from app.config.route_schema import Model, Routes
from app.config.routes_file.source import Path
from app.config.settings import Settings

_OF_ENDPOINTS = (
    *("no_endpoint_wait_s", "balancing", "session_header", "session_cookie", "prefix_bytes", "load_bound"),
    *("load_floor", "slow_start_s", "retry_budget", "forward_credentials", "ejection", "load_report", "health_check"),
)
"""The members of a model that are about its endpoints. `timeouts` are also about a model that it falls back to."""
_OF_SERVED_VERSIONS = ("weight", "upstream_model", "upstream_version")
_BY_PREFIX = ("prefix", "prefix_hash")
_ONLY_WITH = {
    "load_report": ("least_load",),
    "prefix_bytes": _BY_PREFIX,
    "load_bound": _BY_PREFIX,
    "load_floor": _BY_PREFIX,
}
"""Members that one policy of balancing reads, or a few do."""
_OF_SCRAPES = ("path", "port", "timeout_s")
_OF_CHECKS = ("path", "timeout_s", "unhealthy_after", "healthy_after")

Found = Iterator[tuple[Path, str]]


def unused_in_routes(settings: Settings, routes: Routes) -> Found:
    """Yields the members that have no effect, and why."""
    for index, model in enumerate(routes.models):
        path: Path = ("models", index)
        rules = (_simulated,) if model.protocol == "simulated" else (_of_policy, _of_versions, _of_tables, _of_waiting)
        for rule in rules:
            for member, reason in rule(model, settings):
                yield (*path, *member), reason
        room = settings.max_concurrency + settings.queue_size
        if model.max_concurrency is not None and model.max_concurrency >= room:
            yield (*path, "max_concurrency"), never_reached(room)
    yield from _asked_otherwise(routes, "health_check", ("path", "interval_s", *_OF_CHECKS[1:]))
    yield from _asked_otherwise(routes, "load_report", ("source", "path", "port", "interval_s", "timeout_s"))


def never_reached(room: int) -> str:
    """Returns why a limit is never reached, where all requests together are at most `room`."""
    return f"there are never more than {room} requests, MAX_CONCURRENCY and QUEUE_SIZE together"


def _simulated(model: Model, _: Settings) -> Found:
    reason = "the model is simulated: it has no endpoints"
    for member in _OF_ENDPOINTS:
        yield (member,), reason
    for number in range(len(model.versions)):
        for member in _OF_SERVED_VERSIONS:
            yield ("versions", number, member), reason


def _of_policy(model: Model, _: Settings) -> Found:
    for member, policies in _ONLY_WITH.items():
        if model.balancing not in policies:
            yield (member,), f"balancing is {model.balancing}: it is read with {' and '.join(policies)}"
    if model.balancing == "round_robin":
        reason = "balancing is round_robin: endpoints take turns, whatever they weigh"
        yield ("slow_start_s",), reason
        for number, version in enumerate(model.versions):
            for place in range(len(version.endpoints)):
                yield ("versions", number, "endpoints", place, "weight"), reason


def _of_versions(model: Model, _: Settings) -> Found:
    if model.protocol != "v2":
        for number in range(len(model.versions)):
            yield ("versions", number, "upstream_version"), f"protocol is {model.protocol}: only v2 has versions"


def _of_tables(model: Model, _: Settings) -> Found:
    if model.balancing == "least_load" and model.load_report.source == "header":
        yield from ((("load_report", member), "source is header: nothing is scraped") for member in _OF_SCRAPES)
    if not model.health_check.interval_s:
        yield from ((("health_check", member), "interval_s is 0: nothing is checked") for member in _OF_CHECKS)
    if not model.ejection.max_share:
        yield from ((("ejection", member), "max_share is 0: nothing is ejected") for member in ("base_s", "max_s"))
    for member in ("first_byte_s", "idle_s"):
        if getattr(model.timeouts, member) > model.timeouts.total_s:
            yield ("timeouts", member), f"total_s is {model.timeouts.total_s:g}: it ends first"


def _of_waiting(model: Model, settings: Settings) -> Found:
    if not model.no_endpoint_wait_s:
        return
    if not any(version.dns or version.service for version in model.versions):
        yield ("no_endpoint_wait_s",), "no version has dns or service: listed endpoints are always there"
    elif not settings.queue_size:
        yield ("no_endpoint_wait_s",), "QUEUE_SIZE is 0: no request waits"


def _asked_otherwise(routes: Routes, table: str, members: tuple[str, ...]) -> Found:
    """Yields what a model says of how its endpoints are asked, where another one says it of the same ones before.

    An endpoint is asked once, as the first of its models has it (registry.py). With `dns` and `service` it is not known
    which those are. What both have alike is nothing to tell.
    """
    first: dict[str, int] = {}
    for index, model in enumerate(routes.models):
        if table == "load_report" and model.balancing != "least_load":
            continue
        urls = {endpoint.url for version in model.versions for endpoint in version.endpoints}
        others = {first[url] for url in urls if url in first}
        is_open = any(version.dns or version.service for version in model.versions)
        if others and not is_open and urls <= first.keys():
            own = getattr(model, table)
            for member in members:
                if all(getattr(own, member) != getattr(getattr(routes.models[at], table), member) for at in others):
                    reason = f"models[{min(others)}] has the same endpoints, which are asked as it says"
                    yield ("models", index, table, member), reason
        for url in urls:
            first.setdefault(url, index)
