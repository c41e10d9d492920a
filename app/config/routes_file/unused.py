"""Members of a routes file that are right and have no effect, because of others: the log says so."""

from collections.abc import Iterator

import structlog

from app.config.route_schema import Model, Routes
from app.config.routes_file.source import Path, Source

_BY_PREFIX = ("prefix", "prefix_hash")
_ONLY_WITH = {
    "load_report": ("least_load",),
    "prefix_bytes": _BY_PREFIX,
    "load_bound": _BY_PREFIX,
    "load_floor": _BY_PREFIX,
}
"""Members that one policy of balancing reads, or a few do."""

_log = structlog.get_logger("router.routes")


def warn_of_unused(source: Source, routes: Routes) -> None:
    """Log a warning for every member that was given and has no effect."""
    for index, model in enumerate(routes.models):
        path: Path = ("models", index)
        for member, reason in _unused(model):
            if (*path, member) in source.lines:
                _log.warning("a member has no effect", member=source.shown((*path, member)), reason=reason)


def _unused(model: Model) -> Iterator[tuple[str, str]]:
    for member, policies in _ONLY_WITH.items():
        if model.balancing not in policies:
            yield member, f"balancing is {model.balancing}: it is read with {' and '.join(policies)}"
    if model.no_endpoint_wait_s and not any(version.dns or version.service for version in model.versions):
        yield "no_endpoint_wait_s", "no version has dns or service: listed endpoints are always there"
