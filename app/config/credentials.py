"""The credentials of model servers: how they are read, and those that this process has.

Shared memory holds only where a credential is: the routes name an environment variable or a file. So every process
reads the values by itself. A worker does so when it builds models of new routes, and looks every second whether a file
has changed. The arbiter looks every second too: a worker that is forked later begins with what the arbiter has read
last. No request reads a file.

A file that is gone, or holds no credential, leaves the last value in use. It is tried again until it can be read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from app.config.route_schema import Endpoint, Version
from app.config.text_file import read_text, state_of
from app.errors import RoutesError

_MAX_BYTES = 16 << 10


class Reference(NamedTuple):
    """Where a credential is: one of the two is there."""

    variable: str | None
    file: str | None

    def __str__(self) -> str:
        return f"the environment variable {self.variable}" if self.file is None else self.file


class _Known:
    """What was read last. Neither its type nor its `repr` shows the value."""

    __slots__ = ("error", "state", "value")

    def __init__(self, value: str | None, state: object, error: str | None) -> None:
        self.value = value
        """None: there never was one."""
        self.state = state
        """That of the file before it was read."""
        self.error = error
        """Why the last try failed, in one line."""


class Credentials:
    """Those that one process has."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known: dict[Reference, _Known] = {}

    def renew(self, references: Iterable[Reference]) -> list[Reference]:
        """Read what is new, has changed, or could not be read. Forget the others. Returns those with another value."""
        before = self._known
        # The new mapping replaces the old one by one store, so nobody sees a part of it.
        self._known = {reference: self._read(reference, before.get(reference)) for reference in references}
        return [
            reference
            for reference, known in self._known.items()
            if reference in before and known.value != before[reference].value
        ]

    def value(self, reference: Reference) -> str | None:
        """Returns the credential, None if this process has never been able to read it."""
        known = self._known.get(reference)
        return None if known is None else known.value

    def error(self, reference: Reference) -> str | None:
        """Returns why the credential could not be read when that was tried last, None if it could."""
        known = self._known.get(reference)
        return None if known is None else known.error

    def _read(self, reference: Reference, known: _Known | None) -> _Known:
        # The state is noted before the file is read: a change in between causes one read too many, never one too few.
        state = None if reference.file is None else state_of(Path(reference.file))
        if known is not None and known.error is None and known.state == state:
            return known
        try:
            return _Known(read_credential(reference, self._environ), state, None)
        except RoutesError as error:
            return _Known(None if known is None else known.value, state, str(error))


def reference_of(holder: Endpoint | Version) -> Reference | None:
    """Returns where the credential of an endpoint is, or of those that a version finds; None if it has none."""
    if holder.credential_env is None and holder.credential_file is None:
        return None
    return Reference(holder.credential_env, holder.credential_file)


def read_credential(reference: Reference, environ: Mapping[str, str]) -> str:
    """Returns the credential as it is now. Raises RoutesError, whose message does not contain it."""
    if reference.file is not None:
        secret = read_text(Path(reference.file), _MAX_BYTES, RoutesError).strip()
    else:
        secret = environ.get(reference.variable or "", "").strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise RoutesError(f"{reference}: must hold printable ASCII characters")
    return secret
