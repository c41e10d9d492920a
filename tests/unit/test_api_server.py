"""Errors of the Kubernetes API server, whatever their bodies are."""

import http.client
from pathlib import Path
from typing import cast

import pytest

from app.discovery import api_server
from app.discovery.api_server import ApiServer, BadStatus


class Refusing:
    """A connection to an API server that refuses every request with this body. Its own response, too."""

    status = 403

    def __init__(self, body: bytes) -> None:
        self.headers = {"Retry-After": "7"}
        self._body = body

    def request(self, *_: object, **__: object) -> None:
        """Take a request."""

    def getresponse(self) -> "Refusing":
        """Returns the response."""
        return self

    def read(self, most: int) -> bytes:
        """Returns so much of the body."""
        return self._body[:most]


@pytest.mark.parametrize("body", [b'{"message":"\xff"}', b'{"x":' * 10_000, b"no JSON", b"[]", b""])
def test_body_of_an_error_that_can_not_be_read_is_text(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure like any other, and its Retry-After is kept. Another kind of error would end the watch."""
    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(api_server, "SERVICE_ACCOUNT", tmp_path)
    connection = cast("http.client.HTTPSConnection", Refusing(body))
    with pytest.raises(BadStatus) as raised:
        ApiServer("k", 443)._request(connection, "/apis", {})
    assert (raised.value.status, raised.value.retry_after) == (403, 7)
