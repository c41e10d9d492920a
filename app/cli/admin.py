"""The admin API of a running router, as the commands use it."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, TypeVar

import click
import msgspec

from app.cli.output import shown
from app.config.addresses import check_url
from app.config.settings import Settings
from app.server.start_lines import url_of

F = TypeVar("F", bound=Callable[..., Any])

URL_VARIABLE = "ROUTER_ADMIN_URL"
KEY_VARIABLE = "ROUTER_ADMIN_KEY"
TIMEOUT_S = 10.0
"""For the next bytes of a response, and for a whole document."""
_MOST_BYTES = 64 << 20
_PIECE = 64 << 10
_MOST_SHOWN = 300


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key must not go to an address that a response names."""

    def redirect_request(self, *_: object) -> None:
        """Return no request that would be sent instead."""


class Admin:
    """The admin API at one address."""

    def __init__(self, url: str, key: str = "", timeout_s: float | None = None) -> None:
        """`key` is sent as a bearer token, if there is one."""
        self.url = url.rstrip("/")
        self._key = key
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Not through a proxy that the environment names: the admin listener is near.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects).open

    def within(self, timeout_s: float) -> "Admin":
        """Returns the same with another timeout."""
        return Admin(self.url, self._key, timeout_s)

    def get(self, path: str, kind: Any) -> Any:
        """Returns the document at this path, as it came. Raises ClickException, also if it is not of this kind."""
        return self._document("GET", path, kind)

    def post(self, path: str, kind: Any) -> Any:
        """Returns what the router says to this request, as `get` does."""
        return self._document("POST", path, kind)

    def events(self, path: str, kind: Any) -> Iterator[Any]:
        """Yields the data of the events of an endless stream as they come (WHATWG HTML section 9.2.6).

        Raises ClickException, at its end too, and if one is not of this kind.
        """
        with self._request("GET", path) as response:
            if response.headers.get_content_type() != "text/event-stream":
                raise _not_a_router(self.url + path, "it is no stream of events")
            try:
                for line in response:
                    if line.startswith(b"data:") and line.endswith(b"\n"):
                        yield _decoded(line[5:], self.url + path, kind)
            except (OSError, HTTPException) as error:
                raise click.ClickException(f"{self.url}{path}: the stream broke off: {shown(error)}") from error
        raise click.ClickException(f"{self.url}{path}: the router ended the stream")

    def _document(self, method: str, path: str, kind: Any) -> Any:
        with self._request(method, path) as response:
            try:
                return _decoded(_read(response, self._timeout_s), self.url + path, kind)
            except (OSError, HTTPException) as error:
                raise click.ClickException(f"{self.url}{path}: the response broke off: {shown(error)}") from error

    def _request(self, method: str, path: str) -> Any:
        posts = method == "POST"
        headers = {**self._headers, "Content-Type": "application/json"} if posts else self._headers
        data = b"{}" if posts else None
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  # checked
        try:
            return self._open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                lacks_key = error.code == HTTPStatus.UNAUTHORIZED and not self._key
                hint = f"; {KEY_VARIABLE} has the key to send" if lacks_key else ""
                raise click.ClickException(
                    f"{self.url}{path}: {error.code} {_detail(error, self._timeout_s)}{hint}"
                ) from error
        except (OSError, HTTPException) as error:
            reason = shown(str(getattr(error, "reason", error)).strip())[:_MOST_SHOWN]
            raise click.ClickException(
                f"no router can be reached at {self.url}: {reason}. It serves the admin API on its ADMIN_BIND; "
                f"--admin or {URL_VARIABLE} says where that is"
            ) from error


def admin_option(function: F) -> F:
    """Give a command the option `--admin`, its argument `admin` an `Admin`."""
    return click.option(
        "--admin",
        metavar="URL",
        callback=_given,
        help=f"The router's admin listener. Default: {URL_VARIABLE}, or ADMIN_BIND of the environment.",
    )(function)


def _given(context: click.Context, _: click.Parameter, given: str | None) -> Admin:
    return admin_at(context.obj or {}, given)


def admin_at(environ: Mapping[str, str], given: str | None) -> Admin:
    """Returns the admin API at the URL that is given, or else where the environment says. Raises UsageError."""
    url = (given or environ.get(URL_VARIABLE, "").strip() or url_of(_bind(environ))).rstrip("/")
    try:
        check_url(url)
    except ValueError as error:  # which does not repeat the URL: it may hold a password
        where = "--admin" if given else URL_VARIABLE
        raise click.UsageError(f"{where}: {error}; a key goes into {KEY_VARIABLE}") from error
    key = environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise click.UsageError(f"{KEY_VARIABLE}: must be printable ASCII")
    return Admin(url, key)


def _bind(environ: Mapping[str, str]) -> str:
    """Returns the address of the admin listener, or else of the only one."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    given = (environ.get(name, "").strip() for name in ("ADMIN_BIND", "BIND"))
    return next((bind for bind in given if bind), str(defaults["bind"]))


def _read(response: Any, timeout_s: float) -> bytes:
    """Returns the body. Raises OSError if it takes too long in all, however steadily its bytes come."""
    until = time.monotonic() + timeout_s
    body = bytearray()
    while piece := response.read1(_PIECE):
        body += piece
        if len(body) > _MOST_BYTES:
            raise OSError("it is too large")
        if time.monotonic() > until:
            raise TimeoutError("it takes too long")
    if response.length:
        raise OSError("it ends early")
    return bytes(body)


def _decoded(data: bytes, url: str, kind: Any) -> Any:
    try:
        document = msgspec.json.decode(data)
        msgspec.convert(document, kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_a_router(url, str(error)) from error
    return document


def _not_a_router(url: str, why: str) -> click.ClickException:
    return click.ClickException(f"{url}: this is no response of a router's admin API: {why}")


def _detail(error: urllib.error.HTTPError, timeout_s: float) -> str:
    """Returns what an error response says, as far as it comes."""
    text = None
    try:
        body = _read(error, timeout_s)
        problem = msgspec.json.decode(body)
        text = problem.get("detail") or problem.get("title")
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        text = body.decode(errors="replace").strip()
    except (OSError, HTTPException):
        pass
    return shown(str(text or error.reason)[:_MOST_SHOWN])
