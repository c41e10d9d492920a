"""The admin API of a running router, as the commands use it."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from app.config.settings import Settings
from app.server.start_lines import url_of

F = TypeVar("F", bound=Callable[..., Any])

URL_VARIABLE = "ROUTER_ADMIN_URL"
KEY_VARIABLE = "ROUTER_ADMIN_KEY"
_TIMEOUT_S = 10.0
_MOST_BYTES = 64 << 20
_MOST_SHOWN = 300


class Admin:
    """The admin API at one address."""

    def __init__(self, url: str, key: str = "") -> None:
        """`key` is sent as a bearer token, if there is one."""
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Not through a proxy that the environment names: the admin listener is near.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(self, path: str) -> Any:
        """Returns the document at this path. Raises ClickException."""
        return self._document("GET", path)

    def post(self, path: str) -> Any:
        """Returns what the router says to this request. Raises ClickException."""
        return self._document("POST", path)

    def events(self, path: str) -> Iterator[Any]:
        """Yields the data of the events of an endless stream as they come (WHATWG HTML section 9.2.6).

        Raises ClickException, at its end too.
        """
        with self._request("GET", path) as response:
            try:
                for line in response:
                    if line.startswith(b"data:"):
                        yield _decoded(line[5:])
            except (OSError, HTTPException) as error:
                raise click.ClickException(f"{self.url}{path}: the stream broke off: {error}") from error
        raise click.ClickException(f"{self.url}{path}: the router ended the stream")

    def _document(self, method: str, path: str) -> Any:
        with self._request(method, path) as response:
            try:
                return _decoded(response.read(_MOST_BYTES))
            except (OSError, HTTPException) as error:
                raise click.ClickException(f"{self.url}{path}: {error}") from error

    def _request(self, method: str, path: str) -> Any:
        posts = method == "POST"
        headers = {**self._headers, "Content-Type": "application/json"} if posts else self._headers
        data = b"{}" if posts else None
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  # checked
        try:
            return self._open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise click.ClickException(f"{self.url}{path}: {error.code} {_detail(error)}") from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise click.ClickException(
                f"no router can be reached at {self.url}: {reason}. It serves the admin API on its ADMIN_BIND; "
                f"--admin or {URL_VARIABLE} says where that is"
            ) from error


def admin_option(function: F) -> F:
    """Give a command the option `--admin`, its argument `admin` an `Admin`."""
    return click.option(
        "--admin",
        metavar="URL",
        callback=_admin_at,
        help=f"The router's admin listener. Default: {URL_VARIABLE}, or ADMIN_BIND of the environment.",
    )(function)


def _admin_at(context: click.Context, _: click.Parameter, url: str | None) -> Admin:
    environ: Mapping[str, str] = context.obj or {}
    url = url or environ.get(URL_VARIABLE, "").strip() or url_of(_bind(environ))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"{url!r} is not an http:// or https:// URL")
    return Admin(url, environ.get(KEY_VARIABLE, "").strip())


def _bind(environ: Mapping[str, str]) -> str:
    """Returns the address of the admin listener, or else of the only one."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    given = (environ.get(name, "").strip() for name in ("ADMIN_BIND", "BIND"))
    return next((bind for bind in given if bind), str(defaults["bind"]))


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"what the router says is no JSON: {error}") from error


def _detail(error: urllib.error.HTTPError) -> str:
    """Returns what an error response says."""
    body = error.read(_MOST_BYTES)
    try:
        problem = msgspec.json.decode(body)
        text = problem.get("detail") or problem.get("title")
    except (msgspec.DecodeError, AttributeError):
        text = body.decode(errors="replace")
    return "".join(char for char in str(text or error.reason)[:_MOST_SHOWN] if char.isprintable())
