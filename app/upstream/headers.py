"""Which headers pass, in either direction, and what the router adds as a proxy.

Hop-by-hop fields end here (RFC 9110 section 7.6.1): they are about one connection. Credentials of the client end here
too, unless the model's route says otherwise: they are for the router.
"""

import random
import re
from wsgiref.types import WSGIEnvironment

from app.net.http_fields import Headers

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
_CREDENTIAL = re.compile(r"(.*-)?(authorization|cookie|secret|(api|access|auth|id|security|session)-?(key|token))")
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
_ABOUT_PROXIES = frozenset(("connection", "via"))
_DROPPED_BACK = _HOP_BY_HOP | _NOT_PASSED_BACK
_TRACE_STATE = frozenset(("tracestate",))
_MOST_NAMES = 1000
_VIA = "1.1 inference-router"
_TRACEPARENT = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def to_upstream(environ: WSGIEnvironment, request_id: str, *, credentials: bool) -> Headers:
    """Returns the headers for the model server: the client's that may pass, and ours. Names in lower case."""
    dropped: frozenset[str] = frozenset()
    options = environ.get("HTTP_CONNECTION", "")
    if options not in ("", "keep-alive", "close"):
        dropped |= _named(options)
    trace = environ.get("HTTP_TRACEPARENT", "")
    if not _TRACEPARENT.fullmatch(trace):
        trace = new_traceparent()
        if "HTTP_TRACESTATE" in environ:
            dropped |= _TRACE_STATE  # it belongs to the trace that this one isn't
    names = (_names if credentials else _names_without_credentials).of(environ)
    headers = [(names[key], environ[key]) for key in filter(names.get, environ)]
    if dropped:
        headers = [header for header in headers if header[0] not in dropped]
    if environ.get("CONTENT_TYPE"):
        headers.append(("content-type", environ["CONTENT_TYPE"]))
    peer = environ.get("REMOTE_ADDR", "")
    headers += (
        ("x-request-id", request_id),
        ("traceparent", trace),
        ("via", _appended(environ.get("HTTP_VIA", ""), _VIA)),
        ("x-forwarded-proto", environ.get("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]),
    )
    if peer:
        headers.append(("x-forwarded-for", _appended(environ.get("HTTP_X_FORWARDED_FOR", ""), peer)))
    return headers


def to_client(headers: Headers) -> Headers:
    """Returns the model server's headers that may pass back, and our Via."""
    dropped, via = _DROPPED_BACK, ""
    if not _ABOUT_PROXIES.isdisjoint(dict(headers)):
        for name, value in headers:
            if name == "connection":
                dropped |= _named(value)
            elif name == "via":
                via = _appended(via, value)
    passed = [header for header in headers if header[0] not in dropped]
    passed.append(("via", _appended(via, _VIA)))
    return passed


def new_traceparent() -> str:
    """Returns a new trace (W3C Trace Context). Its flag is `sampled`, as a server's default sampler assumes."""
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-01"


def retry_after_s(headers: Headers) -> int | None:
    """Returns the seconds of Retry-After if it is a number (a date would need both clocks to agree), else None."""
    for name, value in headers:
        if name == "retry-after" and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            return int(value)
    return None


class _Names:
    """The names of headers as they pass, kept by key of the environ: most requests have only known keys."""

    def __init__(self, *, credentials: bool) -> None:
        self._credentials = credentials
        self._known: dict[str, str] = {}

    def of(self, environ: WSGIEnvironment) -> dict[str, str]:
        """Returns names by key, for these keys and perhaps others: that of a header that passes, "" for the rest."""
        known = self._known
        if not environ.keys() <= known.keys():
            if len(known) > _MOST_NAMES:  # clients choose the names
                known.clear()
            known.update((key, self._name(key)) for key in environ)
        return known

    def _name(self, key: str) -> str:
        name = key[5:].replace("_", "-").lower() if key.startswith("HTTP_") else ""
        # A header with a secret of the client is known by its name.
        return "" if name in _DROPPED or (not self._credentials and _CREDENTIAL.fullmatch(name)) else name


_names = _Names(credentials=True)
_names_without_credentials = _Names(credentials=False)


def _appended(before: str, added: str) -> str:
    return f"{before}, {added}" if before else added


def _named(connection: str) -> frozenset[str]:
    """Returns the fields that a Connection header names as hop-by-hop."""
    return frozenset(option.strip().lower() for option in connection.split(",")) if connection else frozenset()
