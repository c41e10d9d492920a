"""What a health check makes of an endpoint that it can't ask."""

import errno
import os
import socket
from collections.abc import Sequence

import pytest

from app.config.route_schema import Endpoint
from app.errors import UpstreamUnreachable
from app.routing.health_checks import check_endpoint
from app.upstream import dialer
from app.upstream.resolver import Resolver, SocketAddress

ENDPOINT = Endpoint(url="http://name.test:1")


class Failing(Resolver):
    """A resolver whose lookups fail by this code."""

    def __init__(self, code: int) -> None:
        def lookup(host: str) -> Sequence[SocketAddress]:
            raise socket.gaierror(code, "no luck")

        super().__init__(lookup)


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_FAIL])
def test_lookup_that_fails_is_no_verdict(code: int) -> None:
    """The router's own trouble says nothing about the endpoint: it is neither healthy nor unhealthy for that."""
    with pytest.raises(UpstreamUnreachable, match="no luck"):
        check_endpoint(ENDPOINT, "/", 20.0, Failing(code))


def test_name_that_does_not_exist_is_unhealthy() -> None:
    """A name server that says that there is no such name has told something about the endpoint."""
    assert "no luck" in (check_endpoint(ENDPOINT, "/", 20.0, Failing(socket.EAI_NONAME)).reason or "")


def test_lack_of_descriptors_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for the check, the endpoint was not checked."""

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(dialer, "_PlainSocket", fail)
    with pytest.raises(UpstreamUnreachable, match="open files"):
        check_endpoint(Endpoint(url="http://127.0.0.1:1"), "/", 20.0, Resolver())
