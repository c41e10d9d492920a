"""What `check` finds: the settings and routes as they would be used, and everything that is wrong with them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from app.auth.building import check_tokens
from app.config.cpus import usable_cpus
from app.config.keys_file import read_keys
from app.config.keys_schema import Keys
from app.config.listener_tls import listener_tls
from app.config.route_schema import Endpoint, Routes, Version
from app.config.routes_file import parse_routes
from app.config.routes_file.source import Mistake, Source
from app.config.routes_source import (
    RoutesSource,
    check_tls_files,
    credential_holders,
    read_file,
    tls_files_of,
)
from app.config.settings import Settings, load_settings
from app.config.shown_settings import variables
from app.config.unused import Unused, unused_of
from app.errors import KeysError, RouterError, RoutesError, SettingsError
from app.observability.tracing import is_asked_for
from app.server.fd_limits import reserve_connections

_FIRST_VARIABLE = re.compile("[A-Z0-9_]*")


class Problem(NamedTuple):
    """One thing that is wrong."""

    text: str
    """With its place in front: the variable, or file and line."""
    file: str | None = None
    line: int | None = None


class Findings(NamedTuple):
    """The result of a check."""

    settings: Settings | None
    """None: they are wrong."""
    given: frozenset[str]
    """The variables that are set."""
    routes: Routes | None
    problems: list[Problem]
    unused: list[Unused] = []  # noqa: RUF012  # nobody adds to it
    """What has no effect. Empty if settings or routes are wrong: then it is not known."""


def check(environ: Mapping[str, str]) -> Findings:
    """Returns what a router with this environment would be, and all that would stop its start."""
    settings, problems = _settings(environ)
    file, keys = (_file(environ, problems, variable) for variable in ("ROUTES_FILE", "KEYS_FILE"))
    routes, read_from = None, None
    if file:
        routes, read_from, wrong = _routes(file)
        problems += wrong
        if routes is not None:
            problems += _tls_files(routes, file)
    elif settings is not None:
        routes = RoutesSource(settings, environ).load().routes
    read = None
    if keys:
        read, wrong = _keys(keys)
        problems += wrong
    if settings is not None:
        if routes is not None:
            problems += _credentials(settings, environ, routes, file)
        for look in (check_tokens, listener_tls, reserve_connections):
            try:
                look(settings)
            except (KeysError, SettingsError) as error:
                problems.append(Problem(str(error)))
    given = frozenset(name for name in variables() if environ.get(name, "").strip())
    unused = []
    if settings is not None and routes is not None:
        unused = unused_of(settings, given, (routes, read_from), read, traced=is_asked_for(environ))
    return Findings(settings, given, routes, problems, unused)


def _settings(environ: Mapping[str, str]) -> tuple[Settings | None, list[Problem]]:
    """Returns the settings, None if one is wrong, and a problem for every variable that is."""
    left = dict(environ)
    wrong: list[tuple[str, Problem]] = []
    while True:
        try:
            settings = load_settings(left, usable_cpus())
        except SettingsError as error:
            text = str(error)
            variable = _FIRST_VARIABLE.match(text)[0]  # type: ignore[index]  # each begins with one
            # What is wrong only beside the default of a variable that was wrong is left out.
            if not any(re.search(rf"\b{name}\b", text) for name, _ in wrong):
                wrong.append((variable, Problem(text)))
            if left.pop(variable, None) is None:
                break
        else:
            return (None if wrong else settings), [problem for _, problem in wrong]
    return None, [problem for _, problem in wrong]


def _file(environ: Mapping[str, str], problems: list[Problem], variable: str) -> str:
    """Returns the path in this variable, which is read whatever is wrong with others; nothing if it is wrong itself."""
    wrong = any(problem.text.startswith(f"{variable}=") for problem in problems)
    return "" if wrong else environ.get(variable, "").strip()


def _routes(file: str) -> tuple[Routes | None, Source | None, list[Problem]]:
    mistakes: list[Mistake] = []
    sources: list[Source] = []
    try:
        routes = parse_routes(read_file(Path(file)), file, mistakes, sources)
    except RoutesError as error:
        return None, None, [*_problems(mistakes, file), _located(str(error), file)]
    return (None if mistakes else routes), sources[0], _problems(mistakes, file)


def _problems(mistakes: list[Mistake], file: str) -> list[Problem]:
    return [Problem(str(mistake.error), file, mistake.line) for mistake in mistakes]


def _located(text: str, file: str) -> Problem:
    found = re.match(rf"{re.escape(file)}:(\d+): ", text)
    return Problem(text, file, int(found[1]) if found else None)


def _tls_files(routes: Routes, file: str) -> list[Problem]:
    """Returns a problem for the TLS files of every endpoint that can't be used."""
    problems = []
    for holder in credential_holders(routes):
        try:
            check_tls_files(holder)
        except RoutesError as error:
            line = _line_of(file, next(name for name in tls_files_of(holder).given() if name in str(error)))
            problems.append(Problem(f"{file}:{line}: {error}", file, line))
    return list(dict.fromkeys(problems))


def _credentials(settings: Settings, environ: Mapping[str, str], routes: Routes, file: str) -> list[Problem]:
    """Returns a problem for every credential that can't be had."""
    source, problems = RoutesSource(settings, environ), []
    for holder in credential_holders(routes):
        try:
            source.check_credential(holder)
        except RouterError as error:
            line = _line_of(file, holder.credential_env or holder.credential_file or "")
            problem = Problem(f"{file}:{line}: {error}", file, line)
            if problem not in problems:
                problems.append(problem)
    return problems


def _keys(file: str) -> tuple[tuple[Keys, Source] | None, list[Problem]]:
    """Returns the keys and where they are, None if anything is wrong with the file; and what that is."""
    mistakes: list[Mistake] = []
    sources: list[Source] = []
    try:
        keys = read_keys(Path(file), mistakes, sources)
    except KeysError as error:
        return None, [*_problems(mistakes, file), _located(str(error), file)]
    return (None if mistakes else (keys, sources[0])), _problems(mistakes, file)


def _line_of(file: str, word: str) -> int:
    """Returns the first line that has the word, which stands in a file as it is."""
    lines = read_file(Path(file)).splitlines()
    return next((number for number, line in enumerate(lines, 1) if word in line), 1)


def shown_routes(routes: Routes) -> dict[str, Any]:
    """Returns the routes as they are used, defaults included. Credentials are named and not shown."""
    shown: dict[str, Any] = msgspec.to_builtins(routes)
    return shown


def sources_of(version: Version) -> list[str]:
    """Returns where the endpoints of a version are, in words."""
    if version.dns is not None:
        return [f"dns {version.dns}"]
    if version.service is not None:
        return [f"service {version.service}:{version.port}"]
    return [_endpoint(endpoint) for endpoint in version.endpoints]


def _endpoint(endpoint: Endpoint) -> str:
    return endpoint.url + (f" (weight {endpoint.weight})" if endpoint.weight != 1 else "")
