"""What is right and has no effect, because of something else: settings, and members of the routes and keys files.

It is no mistake, since a policy may be changed for an hour. But whoever wrote it expects something of it, so `check`
warns of it, and so does the log. No reason repeats a value that may be a secret, nor any word of a keys file.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from app.config.keys_schema import Keys
from app.config.route_schema import Routes
from app.config.routes_file.source import Path, Source
from app.config.settings import Settings
from app.config.unused.in_keys import unused_in_keys
from app.config.unused.in_routes import unused_in_routes
from app.config.unused.in_settings import unused_in_settings


class Unused(NamedTuple):
    """A setting or a member that was given and has no effect."""

    name: str
    """The variable, or the member in the words of its file."""
    reason: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else f"{self.file}:{self.line}: "
        return f"{place}{self.name} has no effect: {self.reason}"


def unused_of(
    settings: Settings,
    given: Collection[str],
    routes: tuple[Routes, Source | None],
    keys: tuple[Keys, Source] | None,
    *,
    traced: bool,
) -> list[Unused]:
    """Returns all that has no effect, in the order of settings, routes and keys.

    `given` are the variables that are set. Routes and keys come with the file that they were read from. `traced`:
    whether OpenTelemetry is on.
    """
    found = [Unused(*one) for one in unused_in_settings(settings, given, routes[0], traced=traced)]
    if routes[1] is not None:
        found += _given(routes[1], unused_in_routes(settings, routes[0]))
    if keys is not None:
        found += _given(keys[1], unused_in_keys(settings, routes[0], keys[0]))
    return found


def _given(source: Source, found: Iterable[tuple[Path, str]]) -> list[Unused]:
    """Returns those that the file has: a default without effect is nothing to tell."""
    return [
        Unused(source.shown(path), reason, source.name, source.line(path)) for path, reason in found if source.has(path)
    ]
