"""A routes file, TOML or YAML, becomes one frozen, validated record.

Rules: every mistake is one RoutesError of one line, `file:line: member: what is wrong, what is right`; whatever the
text is, nothing else is raised; no message repeats a URL, nor anything else that a password may be a part of.
"""

import re
from pathlib import PurePath
from typing import Any, get_args

import msgspec

from app.config.route_schema import Policy, Protocol, Routes
from app.config.routes_file.checks import check_routes
from app.config.routes_file.source import SHORT_FORM, Path, Source, check_depth, check_key, kind, known
from app.config.routes_file.toml import read_toml
from app.config.routes_file.yaml import read_yaml
from app.errors import RoutesError

_NAME = "1 to 200 printable ASCII characters, no blank at either end"
_WORD = "1 to 63 letters, digits, dots, hyphens and underscores, the first a letter or a digit"
_HEADER = "1 to 64 letters, digits and hyphens"
_ALLOWED = {
    "default_model": _NAME,
    "models.name": _NAME,
    "models.aliases": _NAME,
    "models.protocol": f"one of {', '.join(get_args(Protocol))}",
    "models.balancing": f"one of {', '.join(get_args(Policy))}",
    "models.session_header": _HEADER,
    "models.session_cookie": _HEADER,
    "models.versions.name": _WORD,
    "models.versions.upstream_model": _NAME,
    "models.versions.upstream_version": _WORD,
    "models.versions.endpoints.credential_env": "the name of a variable: letters, digits and underscores",
    "models.health_check.path": "a path that begins with /, without blanks",
}

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
    "null": "nothing",
}
_BARE = ("`int`", "`float`", "`bool`")
"""What a word is taken for that must be in quotes to be text."""


def parse_routes(text: str, name: str) -> Routes:
    """The routes in a TOML file (name ends in .toml) or YAML/JSON file (.yaml, .yml, .json). Raises RoutesError."""
    ending = PurePath(name).suffix
    if ending == ".toml":
        data, lines = read_toml(text, name)
    elif ending in (".yaml", ".yml", ".json"):
        # JSON may be indented with tabs, and has them nowhere else; YAML may not.
        data, lines = read_yaml(text.replace("\t", " ") if ending == ".json" else text, name)
    else:
        raise RoutesError(f"{name}: the name of a routes file must end in .toml, .yaml, .yml or .json")
    source = Source(name, lines)
    if data in (None, {}):
        raise source.error((), "is empty: it must hold `models`, at least one")
    if not isinstance(data, dict):
        raise source.error((), "must be a table that holds `models`")
    check_values(source, data, ())
    try:
        routes = msgspec.convert(spelt_out(data), Routes)
    except msgspec.ValidationError as error:
        raise explained(source, str(error)) from None
    check_routes(source, routes)
    return routes


def check_values(source: Source, value: object, path: Path) -> None:
    """Nothing but tables, lists, printable text, finite numbers, true, false and null."""
    check_depth(source, path)
    if isinstance(value, dict):
        for key, member in value.items():
            check_key(source, path, key, source.line((*path, key)))
            check_values(source, member, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_values(source, item, (*path, index))
    elif isinstance(value, str):
        if not value.isprintable():
            raise source.error(path, "must be text without line breaks and other control characters")
    elif isinstance(value, int | float):
        if not -1e15 < value < 1e15:  # true of no NaN
            raise source.error(path, "must be a finite number within 1e15")
    elif value is not None:
        raise source.error(path, f"must be text, a number, true or false, not a {type(value).__name__}")


def spelt_out(data: dict[str, Any]) -> dict[str, Any]:
    """The data with its short forms written in full, as far as it has the form for that."""
    models = data.get("models")
    return data | {"models": [_model(model) for model in models]} if isinstance(models, list) else data


def _model(model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    model = dict(model)
    if "versions" not in model:
        if "endpoints" in model:
            model["versions"] = [{name: model.pop(name) for name in SHORT_FORM if name in model}]
        elif model.get("protocol") == "simulated":
            model["versions"] = [{}]
    if isinstance(versions := model.get("versions"), list):
        model["versions"] = [_version(version) for version in versions]
    return model


def _version(version: Any) -> Any:
    if not (isinstance(version, dict) and isinstance(endpoints := version.get("endpoints"), list)):
        return version
    return version | {"endpoints": [_endpoint(endpoint) for endpoint in endpoints]}


def _endpoint(endpoint: Any) -> Any:
    if isinstance(endpoint, str):
        endpoint = {"url": endpoint}
    if not (isinstance(endpoint, dict) and isinstance(url := endpoint.get("url"), str)):
        return endpoint
    return endpoint | {"url": url.rstrip("/")}


def explained(source: Source, message: str) -> RoutesError:
    """msgspec's message in the words of the file."""
    problem, _, where = message.partition(" - at `$")
    path: Path = tuple(member or int(index) for member, index in re.findall(r"\.(\w+)|\[(\d+)\]", where))
    if found := re.fullmatch(r"Object contains unknown field `(\w+)`", problem):
        if found[1] in SHORT_FORM and kind(path) == "models":
            return source.error((*path, found[1]), "must not be there together with versions")
        return source.error((*path, found[1]), f"is no member: {known(path)}")
    if found := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        return source.error(path, f"must have {'endpoints or versions' if found[1] == 'versions' else found[1]}")
    expected, _, got = problem.partition(", got ")
    allowed = None if "`array`" in expected else _ALLOWED.get(kind(path))
    if allowed:
        expected = f"must be {allowed}"
    words = f"{expected.replace('Expected', 'must be')}{f', not {got}' if got else ''}"
    words = re.sub(r"`(\w+)(?: \| null)?`", lambda name: _TYPES.get(name[1], name[1]), words)
    if allowed and not allowed.startswith("one of") and got in _BARE:
        words += ": put it in quotes"
    return source.error(path, words)
