"""Where each member of a routes file stands, and errors that say so. No message repeats what may hold a password."""

import re
from typing import NamedTuple

import msgspec

from app.config.route_schema import Ejection, Endpoint, HealthCheck, Model, Routes, Timeouts, Version
from app.errors import RoutesError

Path = tuple[str | int, ...]

SHORT_FORM = ("endpoints", "upstream_model", "upstream_version")
"""What a model with one version may have itself, in place of `versions`."""

_DEEPEST = 20
TOO_DEEP = f"nested too deep: at most {_DEEPEST} levels are read"

_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "": Routes,
    "models": Model,
    "models.endpoints": Endpoint,
    "models.versions": Version,
    "models.versions.endpoints": Endpoint,
    "models.timeouts": Timeouts,
    "models.ejection": Ejection,
    "models.health_check": HealthCheck,
}


class Source(NamedTuple):
    """A file's name, and the line of each of its members."""

    name: str
    lines: dict[Path, int]

    def error(self, path: Path, problem: str) -> RoutesError:
        """The error that one line says."""
        return RoutesError(f"{self.name}:{self.line(path)}: {self.shown(path)} {problem}")

    def line(self, path: Path) -> int:
        """The line of the member, or of the nearest around it that the file has."""
        path = self._written(path)
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def shown(self, path: Path) -> str:
        """The member as a message names it, like models[0].name."""
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self._written(path)]
        return "".join(parts).removeprefix(".") or "the file"

    def _written(self, path: Path) -> Path:
        """The path without the steps that a short form leaves out."""
        if path[2:3] == ("versions",) and path[:3] not in self.lines:
            path = path[:2] + path[4:]  # `endpoints` of the model itself
        return path[:-1] if path[-1:] == ("url",) and path not in self.lines else path


def syntax_error(name: str, line: int, problem: str) -> RoutesError:
    """The error for a text that is no TOML or YAML."""
    problem = " ".join(problem.split())
    if "@" in problem.replace("'@'", ""):  # a quoted piece of the file, perhaps of a URL with a password
        problem = "can't be read"
    elif "'\\t'" in problem:
        problem += ": indent with spaces"
    elif "Cannot overwrite a value" in problem:
        problem = "the key is there twice: it must be there once"
    return RoutesError(f"{name}:{line}: syntax: {problem}")


def check_depth(source: Source, path: Path) -> None:
    """Raises RoutesError for a member that is nested deeper than any is."""
    if len(path) > _DEEPEST:
        raise syntax_error(source.name, source.line(path), TOO_DEEP)


def check_key(source: Source, path: Path, key: object, line: int) -> None:
    """Every key may be shown in a message once it has passed here."""
    if not (isinstance(key, str) and re.fullmatch(r"[A-Za-z_]{1,64}", key)):
        source.lines[path] = line
        raise source.error(path, f"has a key that is no member's name: {known(path)}")


def kind(path: Path) -> str:
    """The path without its indexes, like models.versions.name."""
    return ".".join(part for part in path if isinstance(part, str))


def known(path: Path) -> str:
    """What a table may hold, for a message."""
    struct = _STRUCTS.get(kind(path))
    members = [*(struct.__struct_fields__ if struct else ()), *(SHORT_FORM if struct is Model else ())]
    return f"{', '.join(members) or 'nothing'} may be there"
