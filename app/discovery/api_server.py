"""Requests to the Kubernetes API server, as a pod makes them: HTTPS with the service account's token and authority.

Both files are read again for every request: the kubelet replaces the token before it expires, and may replace the CA.
"""

import http.client
import ssl
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from app.discovery.findings import DiscoveryFailed
from app.net.tcp_keepalive import keep_alive

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECT_S = 5.0
_READ_S = 15.0
_MOST_RETRY_AFTER_S = 300
_MOST_ERROR_BYTES = 1 << 16
_MOST_BODY_BYTES = 32 << 20
_MOST_LINE_BYTES = 4 << 20
"""etcd stores at most 1.5 MiB for an object."""


class BadStatus(DiscoveryFailed):
    """The API server returned an error, or sent one as an event. 410: list again."""

    def __init__(self, status: int, message: str, retry_after: int) -> None:
        super().__init__(message, retry_after)
        self.status = status


class StatusDetails(msgspec.Struct, rename="camel"):
    """See meta/v1 StatusDetails."""

    retry_after_seconds: int | None = None


class Status(msgspec.Struct):
    """See meta/v1 Status."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None

    def error(self, code: int, retry_after: str | None = None) -> BadStatus:
        """Returns what to raise for it."""
        code = http.client.GONE if self.reason in ("Gone", "Expired") else self.code or code
        words = f"the API server returned {code} {self.reason or ''}: {' '.join((self.message or '').split())[:300]}"
        seconds = int(retry_after) if retry_after and retry_after.isdecimal() else 0
        if not seconds and self.details is not None:
            seconds = self.details.retry_after_seconds or 0
        return BadStatus(code, words, max(0, min(seconds, _MOST_RETRY_AFTER_S)))


class ApiServer(NamedTuple):
    """Where the API server is."""

    host: str
    port: int

    def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """Returns the body of a response. Raises DiscoveryFailed."""
        connection = self._connect()
        try:
            response = self._request(connection, path, query)
            body = response.read(_MOST_BODY_BYTES + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _broken(error) from error
        finally:
            connection.close()
        if len(body) > _MOST_BODY_BYTES:
            raise DiscoveryFailed(f"the API server's response is longer than {_MOST_BODY_BYTES} bytes")
        return body

    def lines(self, path: str, query: Mapping[str, str], idle_s: float) -> Generator[bytes, None, None]:
        """Yields the lines of a response as they come, and first an empty one when it begins. Raises DiscoveryFailed.

        `idle_s` bounds the wait for each. A line that was cut off is left out.
        """
        connection = self._connect()
        try:
            response = self._request(connection, path, query)
            connection.sock.settimeout(idle_s)
            yield b""
            while (line := response.readline(_MOST_LINE_BYTES)).endswith(b"\n"):
                yield line
            if len(line) == _MOST_LINE_BYTES:
                raise DiscoveryFailed(f"an event of the API server is longer than {_MOST_LINE_BYTES} bytes")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _broken(error) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        try:
            context = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
            # kubeadm's authorities lack an extension that RFC 5280 demands, and that Python 3.13 began to insist on.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=_CONNECT_S, context=context)
            connection.connect()
        except (OSError, ValueError) as error:
            raise _broken(error) from error
        keep_alive(connection.sock)
        connection.sock.settimeout(_READ_S)
        return connection

    def _request(
        self, connection: http.client.HTTPSConnection, path: str, query: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        token = (SERVICE_ACCOUNT / "token").read_text().strip()
        headers = {"Accept": "application/json", "User-Agent": "inference-router"}
        if token and token.isascii() and token.isprintable():
            headers["Authorization"] = f"Bearer {token}"
        connection.request("GET", f"{path}?{urlencode(query)}", headers=headers)
        response = connection.getresponse()
        if response.status == http.client.OK:
            return response
        body = response.read(_MOST_ERROR_BYTES)
        try:
            status = msgspec.json.decode(body, type=Status)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            status = Status(message=body[:200].decode(errors="replace"))
        raise Status(response.status, status.reason, status.message, status.details).error(
            response.status, response.headers.get("Retry-After")
        )


def api_server_in(environ: Mapping[str, str]) -> ApiServer | None:
    """Returns the API server that the kubelet names in a pod's environment, or None outside a cluster."""
    host = environ.get("KUBERNETES_SERVICE_HOST", "").strip().removeprefix("[").removesuffix("]")
    port = environ.get("KUBERNETES_SERVICE_PORT_HTTPS") or environ.get("KUBERNETES_SERVICE_PORT") or "443"
    return ApiServer(host, int(port)) if host and port.isdecimal() else None


def _broken(error: Exception) -> DiscoveryFailed:
    return DiscoveryFailed(f"the API server can't be asked: {str(error) or type(error).__name__}")
