"""Requests to the API server, over the connection that lightkube's configuration makes.

lightkube reads the kubeconfig or the service account, renews its token, and sets TLS up. The requests are made here:
its `watch` has no bookmarks, sends outside its `try`, and splits lines at characters that JSON strings may hold; its
errors raise KeyError on a response without a Content-Type and drop Retry-After.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

from router_controller.errors import ApiFailure
from router_controller.kinds import MANAGER, Kind, Object
from router_controller.metrics import FAILURES

REQUEST_TIMEOUT_S = 10.0
CHUNK = 250
"""Objects in one response of a list."""

_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_decode = msgspec.json.Decoder().decode


class Api:
    """The API server. Every method raises ApiFailure, and nothing else."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def list(self, kind: Kind, namespace: str | None, **selectors: str | None) -> tuple[str, list[Object]]:
        """Returns the version of the list, to watch from, and the objects."""
        items: list[Object] = []
        parameters = _parameters(selectors) | {"limit": str(CHUNK)}
        while True:
            page = await self._request("GET", kind.path(namespace), parameters)
            items += page.get("items") or []
            more = page["metadata"].get("continue")
            if not more:
                return str(page["metadata"]["resourceVersion"]), items
            parameters["continue"] = more

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, timeout_s: float, read_timeout_s: float, **selectors: str
    ) -> AsyncIterator[tuple[str, Object]]:
        """Yields the types and objects of the changes after `version`, bookmarks included, until the server ends it.

        The server is asked to end it after `timeout_s`. A stream that is silent for `read_timeout_s` is given up.
        """
        parameters = _parameters(selectors) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(timeout_s)),
        }
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S, read=read_timeout_s)
        with _translated():
            async with self._http.stream("GET", kind.path(namespace), params=parameters, timeout=timeout) as response:
                if response.is_error:
                    raise _failure(response, await response.aread())
                async for line in _lines(response.aiter_bytes()):
                    event = _decode(line)
                    if event["type"] == "ERROR":
                        raise _status_failure(int(event["object"].get("code") or 500), event["object"])
                    yield event["type"], event["object"]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Returns an object."""
        return await self._request("GET", kind.path(namespace, name))

    async def apply(self, kind: Kind, body: Object, *, force: bool) -> Object:
        """Server-side apply. Returns the object as it is now.

        Without `force`, a field that somebody else set to another value is a failure (409).
        """
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"])
        parameters = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        return await self._request("PATCH", path, parameters, body, _APPLY)

    async def apply_status(self, kind: Kind, body: Object) -> Object:
        """Server-side apply of the status of an object."""
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"]) + "/status"
        return await self._request("PATCH", path, {"fieldManager": MANAGER, "force": "true"}, body, _APPLY)

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create an object."""
        return await self._request("POST", kind.path(body["metadata"]["namespace"]), {"fieldManager": MANAGER}, body)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Replace an object, if it is still of the version in `body`."""
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._request("PUT", path, {"fieldManager": MANAGER}, body)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this UID, and no successor of the same name."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        await self._request("DELETE", kind.path(namespace, name), {}, options)

    async def _request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": content_type}
        with _translated():
            response = await self._http.request(
                method, path, params=dict(parameters or {}), content=content, headers=headers
            )
            if response.is_error:
                raise _failure(response, response.content)
            decoded: Any = _decode(response.content)
        if not isinstance(decoded, dict):
            raise ApiFailure(0, "Malformed", f"{method} {path} returned no object")
        return decoded


@asynccontextmanager
async def connected() -> AsyncIterator[Api]:
    """Connect to the API server of the service account, or else of KUBECONFIG. Raises ConfigError."""
    config = KubeConfig.from_env().get()
    if config is None:
        raise ConfigError("the kubeconfig has no current context")
    async with AsyncClient(config, ConnectionParams(timeout=httpx2.Timeout(REQUEST_TIMEOUT_S))) as http:
        yield Api(http)


class _translated:  # noqa: N801  # it is used as a function
    """Turns what the HTTP client raises into ApiFailure. A class, since a generator may not cross its `with`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failure = None
        if isinstance(error, (httpx2.HTTPError, httpx2.StreamError)):
            text = str(error) or type(error).__name__
            failure = ApiFailure(0, "Unreachable", f"the API server can't be reached: {text}")
        elif isinstance(error, (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError)):
            failure = ApiFailure(0, "Malformed", f"the API server's response is not understood: {error}")
        elif isinstance(error, ConfigError):  # the token's file is gone
            failure = ApiFailure(0, "Unauthorized", str(error))
        reported = error if isinstance(error, ApiFailure) else failure
        if reported:
            FAILURES.labels(str(reported.status)).inc()
        if failure:
            raise failure from error


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the lines of a stream. Only a line feed ends one: JSON has none inside, but may have U+0085."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


def _failure(response: httpx2.Response, content: bytes) -> ApiFailure:
    try:
        status = _decode(content)
    except msgspec.DecodeError:  # a proxy in between wrote it
        status = None
    if not isinstance(status, dict):
        status = {"message": content[:500].decode(errors="replace").strip()}
    status.setdefault("retryAfter", response.headers.get("Retry-After"))
    return _status_failure(response.status_code, status)


def _status_failure(code: int, status: Object) -> ApiFailure:
    details = status.get("details") or {}
    try:
        retry_after_s = float(status.get("retryAfter") or details.get("retryAfterSeconds") or 0)
    except ValueError:  # a date, which the API server does not send
        retry_after_s = 0.0
    message = str(status.get("message") or f"HTTP status {code}")
    return ApiFailure(code, str(status.get("reason") or code), message, min(max(retry_after_s, 0.0), 300.0))


def _parameters(selectors: Mapping[str, str | None]) -> dict[str, str]:
    names = {"labels": "labelSelector", "fields": "fieldSelector"}
    return {names[name]: text for name, text in selectors.items() if text is not None}
