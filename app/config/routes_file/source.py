"""The line of each member of a routes file, and errors that name it. No message repeats what may hold a password."""

import re
from typing import NamedTuple

import msgspec

from app.config.route_schema import Model, Routes, Version
from app.config.routes_file.value_types import members
from app.errors import RoutesError

Path = tuple[str | int, ...]

SOURCES = ("endpoints", "dns", "service")
"""The members that say where a version's endpoints come from: it has exactly one of them."""
TLS_MEMBERS = ("ca_file", "client_cert_file", "client_key_file", "server_name")
"""The members of TLS that an endpoint has, or a version for all endpoints that are found."""
OF_FOUND = ("credential_env", "credential_file", "scheme", *TLS_MEMBERS)
"""The members of a version that are about the endpoints which are found."""
SHORT_FORM = (*SOURCES, "port", *OF_FOUND, "upstream_model", "upstream_version")
"""The members of a version that a model with one version may hold itself, in place of `versions`."""

MOST_MISTAKES = 100
"""No more of a file are collected: the next one is raised."""
_DEEPEST = 20
TOO_DEEP = f"nested too deep: at most {_DEEPEST} levels are read"


class Mistake(NamedTuple):
    """One mistake of a file."""

    path: Path
    line: int
    text: str
    """What is wrong, without the place."""
    error: RoutesError


class Source(NamedTuple):
    """A file's name, and the line of each of its members."""

    name: str
    lines: dict[Path, int]
    mistakes: list[Mistake] | None = None
    """Collects what `report` is told. None: the first mistake is raised."""

    def report(self, path: Path, problem: str, missing: str = "") -> None:
        """Raise the error about the member at this path, or collect it. The caller goes on without the member.

        `missing`: the member that the table at this path lacks.
        """
        about = (*path, missing) if missing else path
        self.collect(Mistake(about, self.line(path), f"{self.shown(path)} {problem}", self.error(path, problem)))

    def collect(self, mistake: Mistake) -> None:
        """Raise the mistake's error, or collect the mistake."""
        if self.mistakes is None or len(self.mistakes) >= MOST_MISTAKES:
            raise mistake.error
        self.mistakes.append(mistake)

    def error(self, path: Path, problem: str) -> RoutesError:
        """An error of one line about the member at this path."""
        return RoutesError(f"{self.name}:{self.line(path)}: {self.shown(path)} {problem}")

    def line(self, path: Path) -> int:
        """The line of the member, or of the innermost table around it that the file has."""
        path = self._written(path)
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def has(self, path: Path) -> bool:
        """Whether the file has the member."""
        return self._written(path) in self.lines

    def shown(self, path: Path) -> str:
        """The member's name in messages, like models[0].name."""
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self._written(path)]
        return "".join(parts).removeprefix(".") or "the file"

    def _written(self, path: Path) -> Path:
        """The path without the steps that a short form leaves out."""
        if path[2:3] == ("versions",) and path[:3] not in self.lines:
            path = path[:2] + path[4:]  # `endpoints` of the model itself
        return path[:-1] if path[-1:] == ("url",) and path not in self.lines else path


def syntax_error(name: str, line: int, problem: str) -> RoutesError:
    """The error for a text that is not TOML or YAML."""
    problem = " ".join(problem.split())
    if "@" in problem.replace("'@'", ""):  # a quoted part of the file, perhaps of a URL with a password
        problem = "can't be read"
    elif "'\\t'" in problem:
        problem += ": indent with spaces"
    elif "Cannot overwrite a value" in problem:
        problem = "the key is there twice: it must be there once"
    return RoutesError(f"{name}:{line}: syntax: {problem}")


def check_depth(source: Source, path: Path) -> None:
    """Raises RoutesError for a value that is nested too deep. No member of the schema is."""
    if len(path) > _DEEPEST:
        raise syntax_error(source.name, source.line(path), TOO_DEEP)


def check_key(source: Source, path: Path, key: object, line: int) -> None:
    """Raises RoutesError unless the key may be shown in a message."""
    if not (isinstance(key, str) and re.fullmatch(r"[A-Za-z_]{1,64}|sha256", key)):
        source.lines[path] = line
        raise source.error(path, f"has a key that is no member's name: {known(path)}")


def known(path: Path) -> str:
    """What the table at this path may hold, for a message."""
    record = _record_at(path)
    names = [*(members(record) if record else ()), *(SHORT_FORM if record is Model else ())]
    return f"{', '.join(names) or 'nothing'} may be there"


def _record_at(path: Path) -> type[msgspec.Struct] | None:
    record: type[msgspec.Struct] | None = Routes
    for name in (part for part in path if isinstance(part, str)):
        if record is Model and name in SHORT_FORM:
            record = Version
        member = members(record).get(name) if record else None
        record = member.record if member else None
    return record
