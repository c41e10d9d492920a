"""A keys file, TOML, YAML or JSON, becomes one frozen, validated record.

Rules: every mistake is one KeysError of one line, `file:line: member: what is wrong, what is allowed`. Whatever the
text is, nothing else is raised. No message repeats a value or a key of the text: someone may have written an API key
where its digest belongs.
"""

import pathlib
import re
from datetime import date, datetime
from typing import Any

import msgspec
from msgspec import structs

from app.config.auth_settings import DIGESTS_OF_NOTHING
from app.config.keys_schema import MAX_TENANTS, Key, Keys
from app.config.routes_file import check_values
from app.config.routes_file.convert import is_stand_in, to_record
from app.config.routes_file.mistakes import first_causes
from app.config.routes_file.source import Mistake, Path, Source
from app.config.routes_file.toml import read_toml
from app.config.routes_file.value_types import members
from app.config.routes_file.yaml import read_yaml
from app.config.text_file import read_text
from app.errors import KeysError, RoutesError

MAX_FILE_BYTES = 1 << 20
_QUOTED = re.compile(r"'[^']{5,}'")
"""A part of the file in a parser's message. Shorter ones are single characters."""


def read_keys(file: pathlib.Path, mistakes: list[Mistake] | None = None, sources: list[Source] | None = None) -> Keys:
    """Returns what the file says now. Raises KeysError. `mistakes`, `sources`: see `parse_keys`."""
    return parse_keys(read_text(file, MAX_FILE_BYTES, KeysError), str(file), mistakes, sources)


def parse_keys(
    text: str, name: str, mistakes: list[Mistake] | None = None, sources: list[Source] | None = None
) -> Keys:
    """Returns the keys and tenants in a TOML file (name ends in .toml) or YAML/JSON file. Raises KeysError.

    With a list of `mistakes` only what can't be read at all is raised, and every other mistake is added to the list. If
    there is any, the keys are not what the file says. Where its members are is added to `sources`.
    """
    found: list[Mistake] | None = None if mistakes is None else []
    try:
        return _parse(text, name, found, [] if sources is None else sources)
    except RoutesError as error:  # the readers of the routes file read this one too
        raise KeysError(_harmless(str(error))) from None
    finally:
        if mistakes is not None:
            mistakes += (one._replace(error=RoutesError(_harmless(str(one.error)))) for one in found or ())


def expires_at(key: Key) -> float:
    """Returns the moment from which the key is accepted no more, in seconds since 1970; infinity if it always is."""
    return float("inf") if key.expires is None else datetime.fromisoformat(key.expires).timestamp()


def _parse(text: str, name: str, mistakes: list[Mistake] | None, sources: list[Source]) -> Keys:
    if pathlib.PurePath(name).suffix == ".toml":
        data, lines = read_toml(text, name)
    else:
        # JSON may be indented with tabs, and has them nowhere else; YAML may not.
        data, lines = read_yaml(text.replace("\t", " ") if name.endswith(".json") else text, name)
    source = Source(name, lines, mistakes)
    sources.append(source)
    if not isinstance(data, dict) or not any(data.get(member) for member in ("keys", "tenants")):
        raise source.error((), "must hold keys or tenants, at least one")  # a file that is being written may be empty
    data = _known_members(source, Keys, _texts(data), ())
    check_values(source, data, ())
    no_values = list(mistakes or ())
    keys: Keys = to_record(source, Keys, data, ())
    wrong = list(mistakes or ())
    _check_rules(source, keys)
    if mistakes is not None:
        mistakes[:] = first_causes(no_values, wrong[len(no_values) :], mistakes[len(wrong) :])
    return structs.replace(keys, keys=tuple(structs.replace(key, sha256=key.sha256.lower()) for key in keys.keys))


def _texts(value: object) -> object:
    """Returns the value with each time, which TOML has without quotes, as text."""
    if isinstance(value, dict):
        return {name: _texts(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value  # a datetime is a date too


def _known_members(source: Source, record: type[msgspec.Struct], value: Any, path: Path) -> Any:
    """Returns the table with the members that the record has. Another one is reported, and not by its name."""
    if not isinstance(value, dict):
        return value
    known = members(record)
    left: dict[str, Any] = {}
    for name, member in value.items():
        if name not in known:
            line, text = source.line((*path, name)), f"{source.shown(path)} has an unknown member"
            error = RoutesError(f"{source.name}:{line}: {text}: it may have {', '.join(known)}")
            source.collect(Mistake((*path, name), line, text, error))
        elif (kind := known[name].record) is not None and isinstance(member, list):
            left[name] = [_known_members(source, kind, item, (*path, name, at)) for at, item in enumerate(member)]
        else:
            left[name] = member
    return left


def _check_rules(source: Source, keys: Keys) -> None:
    """Report the rules that are broken which concern several members, or more than a pattern says."""
    if len({tenant.name for tenant in keys.tenants} or {key.tenant for key in keys.keys}) > MAX_TENANTS:
        problem = f"has too many tenants: list at most {MAX_TENANTS}, which are counted apart"
        source.report(("tenants" if keys.tenants else "keys",), problem)
    tenants = _distinct(source, "tenants", "name", [tenant.name for tenant in keys.tenants])
    _distinct(source, "keys", "id", [key.id for key in keys.keys])
    _distinct(source, "keys", "sha256", [key.sha256.lower() for key in keys.keys])
    for index, key in enumerate(keys.keys):
        path = ("keys", index)
        if tenants and key.tenant not in tenants and not any(map(is_stand_in, tenants)):
            source.report((*path, "tenant"), "must be one of the tenants, as the file lists some")
        if key.sha256.lower() in DIGESTS_OF_NOTHING:
            source.report((*path, "sha256"), "is the digest of an empty text: it must be that of a key")
        if key.expires is not None and not _is_time(key.expires):
            source.report((*path, "expires"), "must be a time that exists, such as 2030-01-31T00:00:00Z")
    paths = [("keys", at, one.models) for at, one in enumerate(keys.keys)]
    paths += [("tenants", at, one.models) for at, one in enumerate(keys.tenants)]
    for kind, at, models in paths:
        if models == ():
            source.report((kind, at, "models"), "must have at least 1 item; without the member, all are allowed")


def _distinct(source: Source, kind: str, member: str, values: list[str]) -> set[str]:
    """Returns the values, none of which may be there twice."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            first = source.shown((kind, seen[value], member))
            source.report((kind, index, member), f"is the same as {first}: it must be another one")
        seen.setdefault(value, index)
    return set(seen)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return False
    return True


def _harmless(message: str) -> str:
    """Returns the message without what it may repeat of the file's text, and of a routes file's members."""
    message = re.sub(
        r"(has a key that is no member's name): .*", r"\1: keys and tenants are, and their members", message
    )
    place, syntax, problem = message.partition(": syntax: ")
    return f"{place}{syntax}can't be read" if syntax and _QUOTED.search(problem) else message
