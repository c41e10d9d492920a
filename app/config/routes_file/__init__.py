"""A routes file, TOML, YAML or JSON, becomes one frozen, validated record.

Rules: every mistake is one RoutesError of one line, `file:line: member: what is wrong, what is allowed`. Whatever the
text is, nothing else is raised. No message repeats a URL, nor anything else that may contain a password.
"""

from pathlib import PurePath

from app.config.base_urls import without_roots
from app.config.route_schema import Routes
from app.config.routes_file.checks import check_routes
from app.config.routes_file.convert import to_record
from app.config.routes_file.mistakes import first_causes
from app.config.routes_file.source import Mistake, Path, Source, check_depth, check_key
from app.config.routes_file.toml import read_toml
from app.config.routes_file.yaml import read_yaml
from app.errors import RoutesError


def parse_routes(
    text: str, name: str, mistakes: list[Mistake] | None = None, sources: list[Source] | None = None
) -> Routes:
    """The routes in a TOML file (name ends in .toml) or YAML/JSON file (.yaml, .yml, .json). Raises RoutesError.

    With a list of `mistakes` only what can't be read at all is raised, and every other mistake is added to the list. If
    there is any, the routes are not what the file says. Where its members are is added to `sources`.
    """
    ending = PurePath(name).suffix
    if ending == ".toml":
        data, lines = read_toml(text, name)
    elif ending in (".yaml", ".yml", ".json"):
        # JSON may be indented with tabs, and has them nowhere else; YAML may not.
        data, lines = read_yaml(text.replace("\t", " ") if ending == ".json" else text, name)
    else:
        raise RoutesError(f"{name}: the name of a routes file must end in .toml, .yaml, .yml or .json")
    source = Source(name, lines, mistakes)
    if data in (None, {}):
        raise source.error((), "is empty: it must hold `models`, at least one")
    if not isinstance(data, dict):
        raise source.error((), "must be a table that holds `models`")
    check_values(source, data, ())
    no_values = list(mistakes or ())
    routes: Routes = to_record(source, Routes, data, ())
    if not mistakes:
        routes = without_roots(routes)
    wrong = list(mistakes or ())
    check_routes(source, routes)
    if sources is not None:
        sources.append(source)
    if mistakes is not None:
        mistakes[:] = first_causes(no_values, wrong[len(no_values) :], mistakes[len(wrong) :])
    return routes


def _check_key(source: Source, path: Path, key: object) -> None:
    try:
        check_key(source, path, key, source.line((*path, key if isinstance(key, str) else "")))
    except RoutesError as error:
        text = str(error).partition(": ")[2]
        source.collect(Mistake((*path, str(key)), source.line(path), text, error))


def check_values(source: Source, value: object, path: Path) -> None:
    """Nothing but tables, lists, printable text, finite numbers, true, false and null."""
    check_depth(source, path)
    if isinstance(value, dict):
        for key, member in value.items():
            _check_key(source, path, key)
            check_values(source, member, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_values(source, item, (*path, index))
    elif isinstance(value, str):
        if not value.isprintable():
            source.report(path, "must be text without line breaks and other control characters")
    elif isinstance(value, int | float):
        if not -1e15 < value < 1e15:  # false for NaN too
            source.report(path, "must be a finite number within 1e15")
    elif value is not None:
        source.report(path, f"must be text, a number, true or false, not a {type(value).__name__}")
