"""Rules of a routes file that concern several members, which the types of the schema can't express."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from app.config.addresses import check_host, check_port, check_url
from app.config.route_schema import Ejection, Endpoint, Model, Routes, Timeouts, Version
from app.config.route_values import NAME_PATTERN, NAME_RULE
from app.config.routes_file.source import OF_FOUND, SOURCES, TLS_MEMBERS, Path, Source
from app.config.served_paths import is_served


def check_routes(source: Source, routes: Routes) -> None:
    """Report every rule that is broken."""
    taken: dict[str, str] = {}
    for index, model in enumerate(routes.models):
        _claim(source, taken, model.name, ("models", index, "name"))
    for index, model in enumerate(routes.models):
        for number, alias in enumerate(model.aliases):
            _claim(source, taken, alias, ("models", index, "aliases", number))
    if routes.default_model is not None and all(routes.default_model != model.name for model in routes.models):
        source.report(("default_model",), "must be the name of one of the models, and no alias")
    for index, model in enumerate(routes.models):
        _check_model(source, model, ("models", index))
    _check_fallbacks(source, routes)
    _check_tls_of_urls(source, routes)


def _claim(source: Source, taken: dict[str, str], name: str, path: Path) -> None:
    """Each name may occur once."""
    if name in taken:
        source.report(path, f"is the same as {taken[name]}: names and aliases must differ")
    else:
        taken[name] = source.shown(path)


def _check_model(source: Source, model: Model, path: Path) -> None:
    taken: dict[str, str] = {}
    if model.protocol == "v2":
        _check_names_in_paths(source, model, path)
    for index, version in enumerate(model.versions):
        where = (*path, "versions", index)
        _claim(source, taken, version.name, (*where, "name"))
        holders: tuple[Version | Endpoint, ...] = (version, *version.endpoints)
        if model.forward_credentials and any(one.credential_env or one.credential_file for one in holders):
            source.report((*path, "forward_credentials"), "must not be true where an endpoint has a credential")
        _check_sources(source, model, version, where)
        _check_endpoints(source, version, (*where, "endpoints"))
    if not any(version.weight for version in model.versions):
        source.report((*path, "versions"), "must hold at least one version with a weight above 0")
    by_session = [member for member in ("session_header", "session_cookie") if getattr(model, member) is not None]
    if model.balancing == "session" and not by_session:
        source.report((*path, "balancing"), "is session: session_header or session_cookie must be there too")
    if model.balancing != "session" and by_session:
        source.report((*path, by_session[0]), "must be there only when balancing is session")
    _check_paths(source, model, (*path, "paths"))
    _check_order(source, model.timeouts, (*path, "timeouts"), "connect_s", "total_s")
    _check_order(source, model.ejection, (*path, "ejection"), "base_s", "max_s")


def _check_fallbacks(source: Source, routes: Routes) -> None:
    models = {model.name: model for model in routes.models}
    for index, model in enumerate(routes.models):
        path = ("models", index, "fallback")
        _check_reasons(source, model, ("models", index, "fallback_on"))
        for number, name in enumerate(model.fallback):
            where = (*path, number)
            if name not in models:
                source.report(where, "must be the name of one of the models, and no alias")
                continue
            if name in model.fallback[:number]:
                source.report(where, "is there twice: it must be there once")
            if models[name].protocol != model.protocol:
                source.report(where, f"is a model of {models[name].protocol}: it must be one of {model.protocol}")
            if _leads_to(models, name, model.name):
                source.report(where, "leads back to this model: fallbacks must not form a loop")


def _check_reasons(source: Source, model: Model, path: Path) -> None:
    if not model.fallback and path in source.lines:
        source.report(path, "must be there only together with fallback")
    if model.fallback and not model.fallback_on:
        source.report(path, "must hold at least one reason: without any, fallback has no effect")
    for number, reason in enumerate(model.fallback_on):
        if reason in model.fallback_on[:number]:
            source.report((*path, number), "is there twice: it must be there once")


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


def _check_sources(source: Source, model: Model, version: Version, path: Path) -> None:
    """A version has exactly one source of endpoints; a simulated one has none."""
    given = [name for name in SOURCES if getattr(version, name)]
    if model.protocol == "simulated":
        if given:
            source.report((*path, given[0]), "must not be there: a simulated model has none")
    elif not given:
        source.report((*path, "endpoints"), "must hold at least one endpoint")
    elif len(given) > 1:
        source.report((*path, given[1]), f"must not be there together with {given[0]}")
    try:
        _check_discovery(version)
    except _Misplaced as error:
        source.report((*path, error.member), str(error))


class _Misplaced(ValueError):
    """A member does not fit the others of its version."""

    def __init__(self, member: str, problem: str) -> None:
        super().__init__(problem)
        self.member = member


def _check_discovery(version: Version) -> None:
    """Raises _Misplaced."""
    if version.dns is not None:
        _check_dns(version.dns)
    if (version.service is None) != (version.port is None):
        present, other = ("port", "service") if version.service is None else ("service", "port")
        raise _Misplaced(present, f"must be there only together with {other}")
    if version.port is not None and version.port.isdigit():
        try:
            check_port(version.port)
        except ValueError as error:
            raise _Misplaced("port", f"is none: {error}") from None
    for member in OF_FOUND:
        if getattr(version, member) not in (None, "http") and not (version.dns or version.service):
            raise _Misplaced(member, "must be there only beside dns or service; an endpoint has its own")
    _check_credential(version)
    _check_tls(version, "with scheme https" if version.scheme != "https" else "")


def _check_dns(text: str) -> None:
    host, colon, port = text.partition(":")
    try:
        check_host(host)
        if colon:
            check_port(port)
    except ValueError as error:
        raise _Misplaced("dns", f"is not a name: {error}") from None
    if host.startswith("_") == bool(colon):
        raise _Misplaced("dns", "must have a port, unless it begins with _: SRV records hold the ports")


def _check_credential(holder: Version | Endpoint) -> None:
    if holder.credential_env is not None and holder.credential_file is not None:
        raise _Misplaced("credential_file", "must not be there together with credential_env")
    if holder.credential_file is not None and not holder.credential_file.startswith("/"):
        raise _Misplaced("credential_file", "must be an absolute path")


def _check_tls(holder: Version | Endpoint, lacks: str) -> None:
    """Raises _Misplaced. `lacks` is that without which it may have no TLS, if it lacks that."""
    given = [member for member in TLS_MEMBERS if getattr(holder, member) is not None]
    if given and lacks:
        raise _Misplaced(given[0], f"must be there only {lacks}")
    if holder.client_key_file is not None and holder.client_cert_file is None:
        raise _Misplaced("client_key_file", "must be there only together with client_cert_file")
    for member in given:
        if member.endswith("_file") and not getattr(holder, member).startswith("/"):
            raise _Misplaced(member, "must be an absolute path")


def _check_tls_of_urls(source: Source, routes: Routes) -> None:
    """Connections are kept by URL: wherever one stands, or is found, its TLS must be the same."""
    known: dict[object, tuple[tuple[str | None, ...], str]] = {}
    for index, model in enumerate(routes.models):
        for number, version in enumerate(model.versions):
            path = ("models", index, "versions", number)
            holders: list[tuple[object, Version | Endpoint, Path]] = [
                (endpoint.url, endpoint, (*path, "endpoints", place, "url"))
                for place, endpoint in enumerate(version.endpoints)
            ]
            if version.dns is not None or version.service is not None:
                name = version.dns.lower() if version.dns is not None else version.service
                found = (name, version.port, version.scheme)
                holders.append((found, version, (*path, "dns" if version.dns is not None else "service")))
            for key, holder, where in holders:
                tls = tuple(getattr(holder, member) for member in TLS_MEMBERS)
                before, first = known.setdefault(key, (tls, source.shown(where)))
                if before != tls:
                    raise source.error(where, f"is the same as {first}: {', '.join(TLS_MEMBERS)} must be the same, too")


def _check_names_in_paths(source: Source, model: Model, path: Path) -> None:
    """Paths of v2 hold the names of models: the model's own to the router, and the server's to the endpoints."""
    if any("/" in name for name in (model.name, *model.aliases)):
        source.report(path, "is served under a path of v2: its names and aliases must not contain a slash")
    for index, version in enumerate(model.versions):
        name = version.upstream_model
        if name is not None and (name.startswith("/") or not re.match(NAME_PATTERN, name)):
            where = (*path, "versions", index, "upstream_model")
            source.report(where, f"becomes a part of a path of v2: it must not begin with a slash, and be {NAME_RULE}")


def _check_paths(source: Source, model: Model, path: Path) -> None:
    if model.paths and model.protocol == "v2":
        source.report(path, "must not be there: a body names its model only with openai")
    for index, listed in enumerate(model.paths):
        if is_served(listed):
            source.report((*path, index), "is served by the router anyway: it must be another one")
        if listed in model.paths[:index]:
            source.report((*path, index), "is there twice: it must be there once")


def _check_order(source: Source, record: Timeouts | Ejection, path: Path, less: str, more: str) -> None:
    low, high = getattr(record, less), getattr(record, more)
    if low > high:
        if (*path, less) in source.lines:
            source.report((*path, less), f"is {low:g}: it must be at most {more}, {high:g}")
            return
        source.report((*path, more), f"is {high:g}: it must be at least {less}, {low:g}")


def _check_endpoints(source: Source, version: Version, path: Path) -> None:
    seen: dict[tuple[str, str | None, int, str], str] = {}
    for index, endpoint in enumerate(version.endpoints):
        where = (*path, index)
        try:
            address = _address(endpoint.url)
        except ValueError as error:
            source.report((*where, "url"), f"is not a model server's: {error}")
            continue
        if address in seen:
            source.report((*where, "url"), f"is the same as {seen[address]}: it must be there once")
        seen[address] = source.shown((*where, "url"))
        try:
            _check_credential(endpoint)
            _check_tls(endpoint, "" if endpoint.url.startswith("https://") else "with an https:// URL")
        except _Misplaced as error:
            source.report((*where, error.member), str(error))


def _address(url: str) -> tuple[str, str | None, int, str]:
    """Scheme, host, port and path of an endpoint's URL, for comparison. Raises ValueError as check_url does."""
    check_url(url)
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), parts.path
