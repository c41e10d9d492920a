"""When the routes are read again: once for each change of a file that they are made of, or that they lack."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.config.routes_source import RoutesSource
from app.config.settings import load_settings
from app.errors import RoutesError
from tests.support.certificates import LOOPBACK, certificate, pem_of

CREDENTIAL, TLS = "credential", "tls"


class Source:
    """A routes file of one endpoint, whose credential or TLS is in another file."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.file, self.other = folder / "routes.yaml", folder / kind
        member = "credential_file" if kind == CREDENTIAL else "ca_file"
        self._routes = f"models: [{{name: m, endpoints: [{{url: https://m, {member}: {self.other}}}]}}]"
        self._content = "secret" if kind == CREDENTIAL else pem_of(certificate("an authority", LOOPBACK)).decode()
        self.write()
        self.make()
        self.source = RoutesSource(load_settings({"ROUTES_FILE": str(self.file)}, 1), {})

    def write(self) -> None:
        """Make the routes valid."""
        self.file.write_text(self._routes)

    def make(self) -> None:
        """Make the other file what it should be."""
        self.other.write_text(self._content)

    def load_in_vain(self) -> None:
        """Load what is not valid."""
        with pytest.raises(RoutesError):
            self.source.load()


@pytest.fixture(params=[CREDENTIAL, TLS])
def routes(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    """Valid at first."""
    return Source(tmp_path, request.param)


def break_routes(routes: Source) -> None:
    """It is no routes file any more."""
    routes.file.write_text("{")


def lose_other_file(routes: Source) -> None:
    """The routes are as they were, but can't be used."""
    routes.other.unlink()


@pytest.mark.parametrize("lose", [break_routes, lose_other_file])
def test_what_was_refused_is_read_again_once_it_can_be_used(routes: Source, lose: Callable[[Source], None]) -> None:
    """Not every second meanwhile: each time is an error in the log."""
    lose(routes)
    routes.load_in_vain()
    assert not routes.source.changed()
    routes.write() if lose is break_routes else routes.make()
    assert routes.source.changed()
    routes.source.load()
    assert not routes.source.changed()


def test_change_beside_an_invalid_file_is_told_once(tmp_path: Path) -> None:
    """A credential that is rotated meanwhile does not have the same error logged every second from then on."""
    routes = Source(tmp_path, CREDENTIAL)
    routes.source.load()
    break_routes(routes)
    routes.load_in_vain()
    routes.other.write_text("rotated")
    assert routes.source.changed()
    routes.load_in_vain()
    assert not routes.source.changed()
    routes.write()
    routes.source.load()
    assert not routes.source.changed()


def test_certificate_that_is_renewed_is_no_change_of_the_routes(tmp_path: Path) -> None:
    """Each process reads it by itself, and the halves of one that is being replaced make no routes stale."""
    routes = Source(tmp_path, TLS)
    routes.source.load()
    lose_other_file(routes)
    assert not routes.source.changed()
