"""Which headers pass, in either direction, and which ones the router adds as a proxy.

Hop-by-hop fields are dropped (RFC 9110 section 7.6.1): they describe one connection. Credentials of the client are
dropped too, unless the model's route says otherwise: they are meant for the router.
"""

import random
import re
from wsgiref.types import WSGIEnvironment

from app.http_fields import Headers
from app.upstream.credential_names import is_credential

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_OUR_OWN = frozenset(
    (
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "traceparent",
        "via",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
    )
)
_NOT_PASSED_BACK = frozenset(("content-length", "date", "server", "via", "x-request-id"))
_DROPPED = _HOP_BY_HOP | _OUR_OWN
_DROPPED_BACK = _HOP_BY_HOP | _NOT_PASSED_BACK
_TRACE_STATE = frozenset(("tracestate",))
_MOST_CHARACTERS = 1 << 16
_VIA = "1.1 inference-router"
_TRACEPARENT = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def to_upstream(
    environ: WSGIEnvironment, request_id: str, *, credentials: bool, trace_sample_ratio: float = 0.0
) -> Headers:
    """Returns the headers for the model server, names in lower case: the client's that may pass, and the router's.

    A request without a trace gets a new one if `trace_sample_ratio`, the share of those that are sampled, is above 0.
    """
    dropped: frozenset[str] = frozenset()
    options = environ.get("HTTP_CONNECTION", "")
    if options not in ("", "keep-alive", "close"):
        dropped |= _named(options)
    trace = environ.get("HTTP_TRACEPARENT", "")
    if not _TRACEPARENT.fullmatch(trace):
        trace = new_traceparent(trace_sample_ratio) if trace_sample_ratio else ""
        if "HTTP_TRACESTATE" in environ:
            dropped |= _TRACE_STATE  # it belongs to the trace that is replaced
    headers = (_names if credentials else _names_without_credentials).passed(environ)
    if dropped:
        headers = [header for header in headers if header[0] not in dropped]
    if environ.get("CONTENT_TYPE"):
        headers.append(("content-type", environ["CONTENT_TYPE"]))
    peer = environ.get("REMOTE_ADDR", "")
    headers += (
        ("x-request-id", request_id),
        ("via", _appended(environ.get("HTTP_VIA", ""), _VIA)),
        ("x-forwarded-proto", environ.get("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]),
    )
    if trace:
        headers.append(("traceparent", trace))
    if peer:
        headers.append(("x-forwarded-for", _appended(environ.get("HTTP_X_FORWARDED_FOR", ""), peer)))
    return headers


def to_client(headers: Headers) -> Headers:
    """Returns the model server's headers that may pass back, and the router's Via."""
    passed = []
    options, via = "", ""
    for header in headers:
        name, value = header
        if name not in _DROPPED_BACK:
            passed.append(header)
        elif name == "connection":
            options = _appended(options, value)
        elif name == "via" and value:
            via = _appended(via, value)
    if options:
        dropped = _named(options)
        passed = [header for header in passed if header[0] not in dropped]
    passed.append(("via", _appended(via, _VIA)))
    return passed


def new_traceparent(sample_ratio: float) -> str:
    """Returns a new traceparent (W3C Trace Context), which says sampled for this share of them.

    The flag is drawn here because a server's default sampler records every trace whose parent is sampled.
    """
    sampled = random.random() < sample_ratio  # noqa: S311  # a share, not a secret
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-{sampled:02d}"


def retry_after_s(headers: Headers) -> int | None:
    """Returns the seconds of Retry-After, or None if there is no number (a date would need both clocks to agree)."""
    for name, value in headers:
        if name == "retry-after" and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            return int(value)
    return None


class _Names:
    """The names under which headers pass, cached: most requests have only names that were seen before."""

    __slots__ = ("_credentials", "_known", "_length")

    def __init__(self, *, credentials: bool) -> None:
        self._credentials = credentials
        self._known: dict[str, str] = {}
        """The name for a key of an environ, or "" if it is no header that passes."""
        self._length = 0

    def passed(self, environ: WSGIEnvironment) -> Headers:
        """Returns the headers that pass."""
        headers = []
        for key, value in environ.items():
            name = self._known.get(key)
            if name is None:
                name = self._learn(key)
            if name:
                headers.append((name, value))
        return headers

    def _learn(self, key: str) -> str:
        if self._length > _MOST_CHARACTERS:  # clients choose the names
            self._known.clear()
            self._length = 0
        name = key[5:].replace("_", "-").lower() if key.startswith("HTTP_") else ""
        if name in _DROPPED or (not self._credentials and is_credential(name)):
            name = ""
        self._known[key] = name
        self._length += len(key)
        return name


_names = _Names(credentials=True)
_names_without_credentials = _Names(credentials=False)


def _appended(before: str, added: str) -> str:
    return f"{before}, {added}" if before else added


def _named(connection: str) -> frozenset[str]:
    """Returns the fields that a Connection header names as hop-by-hop."""
    return frozenset(option.strip().lower() for option in connection.split(",")) if connection else frozenset()
