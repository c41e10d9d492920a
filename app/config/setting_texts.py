"""The text of a variable becomes the value of its setting, or an error that quotes no password."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Meta

from app.config.addresses import check_host, check_origin, check_port, check_url
from app.config.auth_settings import CONVERTERS, SECRET
from app.config.kv_endpoints import kv_endpoint
from app.config.setting import absolute_path, document_file, items
from app.errors import SettingsError


def _redact(text: str) -> str:
    """Text for an error message.

    What precedes an @, or follows the scheme of Redis, may contain a password, and so may the query of a URL.
    """
    _, at, rest = text.rpartition("@")
    rest = re.sub(r"(rediss?://)[^,]+", r"\1***", rest)
    rest = re.sub(r"(://[^,?#]*[?#])[^,]+", r"\1***", rest)
    return f"***@{rest}" if at else rest


def converted(variable: str, text: str, annotated: Any) -> Any:
    """Convert one variable's text to its field's type. Raises SettingsError."""
    meta: Meta = annotated.__metadata__[0]
    allowed = (meta.extra or {})["allowed"]
    try:
        text.encode()  # bytes that are not UTF-8 could be read, but not returned in JSON
        convert = _CONVERTERS.get(variable)
        if convert is not None:
            return convert(text)
        return msgspec.convert(text, annotated, strict=False)
    except ValueError as error:  # msgspec.ValidationError is one
        own_words = "" if isinstance(error, (msgspec.ValidationError, UnicodeError)) else f" ({error})"
        shown = "***" if variable in SECRET else _redact(text)
        raise SettingsError(f"{variable}={shown!r}: must be {allowed}{own_words}") from None


def _listen_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError("the port is missing")
    check_port(port)
    check_host(host)
    return text


def _kv_endpoints(text: str) -> tuple[str, ...]:
    return tuple(map(kv_endpoint, items(text)))


def _origins(text: str) -> tuple[str, ...]:
    return ("*",) if text == "*" else tuple(map(check_origin, items(text)))


def _backends(text: str) -> tuple[str, ...]:
    urls = tuple(item.rstrip("/") for item in items(text))
    for url in urls:
        check_url(url)
    return urls


_CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    **CONVERTERS,
    "KV_ENDPOINTS": _kv_endpoints,
    "BACKENDS": _backends,
    "CORS_ORIGINS": _origins,
    "ROUTES_FILE": document_file,
    "BIND": _listen_address,
    "ADMIN_BIND": _listen_address,
    "PROMETHEUS_MULTIPROC_DIR": absolute_path,
}
"""What makes the value of a variable from its text, where msgspec doesn't. Raises ValueError."""
