"""Rules of a routes file that concern several members, which the types of the schema can't express."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from app.config.addresses import check_url
from app.config.route_schema import NAME_PATTERN, NAME_RULE, Ejection, Model, Routes, Timeouts, Version
from app.config.routes_file.source import Path, Source
from app.config.served_paths import is_served


def check_routes(source: Source, routes: Routes) -> None:
    """Raises RoutesError for the first rule that is broken."""
    taken: dict[str, str] = {}
    for index, model in enumerate(routes.models):
        _claim(source, taken, model.name, ("models", index, "name"))
    for index, model in enumerate(routes.models):
        for number, alias in enumerate(model.aliases):
            _claim(source, taken, alias, ("models", index, "aliases", number))
    if routes.default_model is not None and all(routes.default_model != model.name for model in routes.models):
        raise source.error(("default_model",), "must be the name of one of the models, and no alias")
    for index, model in enumerate(routes.models):
        _check_model(source, model, ("models", index))
    _check_fallbacks(source, routes)


def _claim(source: Source, taken: dict[str, str], name: str, path: Path) -> None:
    """Each name may occur once."""
    if name in taken:
        raise source.error(path, f"is the same as {taken[name]}: names and aliases must differ")
    taken[name] = source.shown(path)


def _check_model(source: Source, model: Model, path: Path) -> None:
    taken: dict[str, str] = {}
    if model.protocol == "v2":
        _check_names_in_paths(source, model, path)
    for index, version in enumerate(model.versions):
        where = (*path, "versions", index)
        _claim(source, taken, version.name, (*where, "name"))
        if model.forward_credentials and any(e.credential_env or e.credential_file for e in version.endpoints):
            raise source.error((*path, "forward_credentials"), "must not be true where an endpoint has a credential")
        if model.protocol == "simulated":
            if version.endpoints:
                raise source.error((*where, "endpoints"), "must not be there: a simulated model has none")
        elif not version.endpoints:
            raise source.error((*where, "endpoints"), "must hold at least one endpoint")
        _check_endpoints(source, version, (*where, "endpoints"))
    if not any(version.weight for version in model.versions):
        raise source.error((*path, "versions"), "must hold at least one version with a weight above 0")
    by_session = [member for member in ("session_header", "session_cookie") if getattr(model, member) is not None]
    if model.balancing == "session" and not by_session:
        raise source.error((*path, "balancing"), "is session: session_header or session_cookie must be there too")
    if model.balancing != "session" and by_session:
        raise source.error((*path, by_session[0]), "must be there only when balancing is session")
    _check_paths(source, model, (*path, "paths"))
    _check_order(source, model.timeouts, (*path, "timeouts"), "connect_s", "total_s")
    _check_order(source, model.ejection, (*path, "ejection"), "base_s", "max_s")


def _check_fallbacks(source: Source, routes: Routes) -> None:
    models = {model.name: model for model in routes.models}
    for index, model in enumerate(routes.models):
        path = ("models", index, "fallback")
        if not model.fallback and ("models", index, "fallback_on") in source.lines:
            raise source.error(("models", index, "fallback_on"), "must be there only together with fallback")
        for number, name in enumerate(model.fallback):
            where = (*path, number)
            if name not in models:
                raise source.error(where, "must be the name of one of the models, and no alias")
            if name in model.fallback[:number]:
                raise source.error(where, "is there twice: it must be there once")
            if models[name].protocol != model.protocol:
                raise source.error(where, f"is a model of {models[name].protocol}: it must be one of {model.protocol}")
            if _leads_to(models, name, model.name):
                raise source.error(where, "leads back to this model: fallbacks must not form a loop")


def _leads_to(models: Mapping[str, Model], name: str, target: str) -> bool:
    """Whether the target is among these: the model, its fallbacks, theirs, and so on."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        name = ahead.pop()
        if name == target:
            return True
        if name in models and name not in seen:
            seen.add(name)
            ahead += models[name].fallback
    return False


def _check_names_in_paths(source: Source, model: Model, path: Path) -> None:
    """Paths of v2 hold the names of models: the model's own to the router, and the server's to the endpoints."""
    if any("/" in name for name in (model.name, *model.aliases)):
        raise source.error(path, "is served under a path of v2: its names and aliases must not contain a slash")
    for index, version in enumerate(model.versions):
        name = version.upstream_model
        if name is not None and (name.startswith("/") or not re.match(NAME_PATTERN, name)):
            where = (*path, "versions", index, "upstream_model")
            raise source.error(
                where, f"becomes a part of a path of v2: it must not begin with a slash, and be {NAME_RULE}"
            )


def _check_paths(source: Source, model: Model, path: Path) -> None:
    if model.paths and model.protocol == "v2":
        raise source.error(path, "must not be there: a body names its model only with openai")
    for index, listed in enumerate(model.paths):
        if is_served(listed):
            raise source.error((*path, index), "is served by the router anyway: it must be another one")
        if listed in model.paths[:index]:
            raise source.error((*path, index), "is there twice: it must be there once")


def _check_order(source: Source, record: Timeouts | Ejection, path: Path, less: str, more: str) -> None:
    low, high = getattr(record, less), getattr(record, more)
    if low > high:
        if (*path, less) in source.lines:
            raise source.error((*path, less), f"is {low:g}: it must be at most {more}, {high:g}")
        raise source.error((*path, more), f"is {high:g}: it must be at least {less}, {low:g}")


def _check_endpoints(source: Source, version: Version, path: Path) -> None:
    seen: dict[tuple[str, str | None, int, str], str] = {}
    for index, endpoint in enumerate(version.endpoints):
        where = (*path, index)
        try:
            address = _address(endpoint.url)
        except ValueError as error:
            raise source.error((*where, "url"), f"is not a model server's: {error}") from None
        if address in seen:
            raise source.error((*where, "url"), f"is the same as {seen[address]}: it must be there once")
        seen[address] = source.shown((*where, "url"))
        if endpoint.credential_env is not None and endpoint.credential_file is not None:
            raise source.error((*where, "credential_file"), "must not be there together with credential_env")
        if endpoint.credential_file is not None and not endpoint.credential_file.startswith("/"):
            raise source.error((*where, "credential_file"), "must be an absolute path")


def _address(url: str) -> tuple[str, str | None, int, str]:
    """Scheme, host, port and path of an endpoint's URL, for comparison. Raises ValueError as check_url does."""
    check_url(url)
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.path
