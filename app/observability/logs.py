"""Logging: one line per event on standard error, as JSON or for a console. gunicorn's events have the same form."""

import logging
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from io import StringIO
from typing import Any, TextIO

import msgspec
import structlog

from app.config.settings import Settings


def configure(settings: Settings) -> dict[str, Any]:
    """Configure structlog. Returns the matching `logging` configuration, for gunicorn's `logconfig_dict`."""
    stamp: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *stamp,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    render: list[structlog.typing.Processor]
    if settings.log_format == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        render = _console()
    level = settings.log_level.upper()
    own = {"handlers": ["stderr"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": stamp,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {"gunicorn.error": own, "gunicorn.access": own, "router": own},
    }


def access_logger(settings: Settings) -> Any:
    """Returns the logger of requests. It writes the same lines, whatever LOG_LEVEL is, and bypasses `logging`.

    Under overload there are thousands of lines a second, and `logging` takes ten times as long for each.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    stream: Any = sys.stderr  # None if it was closed before the start
    if settings.log_format == "json":
        processors.append(structlog.processors.JSONRenderer(serializer=_json))
        output: Any = structlog.BytesLogger(stream.buffer if stream else _nowhere("wb"))
    else:
        processors += _console()
        output = structlog.PrintLogger(stream or _nowhere("w"))
    levels = structlog.make_filtering_bound_logger(logging.INFO)
    return structlog.wrap_logger(output, processors, levels).bind(logger="router.access")


def malformed_requests_logger(settings: Settings) -> Callable[[str, int, str], None]:
    """Returns what logs a request that could not be parsed, where ACCESS_LOG says that requests are logged."""
    log = access_logger(settings)

    def record(client: str, status: int, detail: str) -> None:
        if settings.access_log != "off":
            with suppress(OSError, ValueError):  # nobody reads the log any more
                log.info("malformed request", client=client, status=status, detail=detail)

    return record


def handshakes_logger(settings: Settings) -> Callable[[str, str], None]:
    """Returns what logs a TLS handshake that failed, where ACCESS_LOG says that requests are logged."""
    log = access_logger(settings)

    def record(client: str, detail: str) -> None:
        if settings.access_log != "off":
            with suppress(OSError, ValueError):  # nobody reads the log any more
                log.info("TLS handshake failed", client=client, detail=detail)

    return record


def _nowhere(mode: str) -> Any:
    return open(os.devnull, mode)  # for as long as the process lives


def _json(event: dict[str, Any], **_: Any) -> bytes:
    line = msgspec.json.encode(event)
    return line if line.isascii() else _UNSAFE.sub(_escaped, line.decode()).encode()


def _console() -> list[structlog.typing.Processor]:
    # Plain tracebacks: the default ones print local variables, which may be secrets.
    colors = sys.stderr is not None and sys.stderr.isatty()
    return [_escape, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_plain_traceback)]


def _escape(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what a terminal would obey: clients choose paths and header fields, and errors quote them."""
    for key, value in event.items():
        if key != "exc_info" and not isinstance(value, (int, float)) and value is not None:
            text = value if isinstance(value, str) else repr(value)
            event[key] = _UNSAFE.sub(_escaped, text)
    return event


def _plain_traceback(stream: TextIO, exc_info: Any) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write("\n".join(_UNSAFE.sub(_escaped, line) for line in text.getvalue().split("\n")))


_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
"""Control characters, those that change the direction of text or end a line, and those that nobody sees."""


def _escaped(found: re.Match[str]) -> str:
    """Returns the escape that JSON and Python have in common, but for the usual short ones."""
    character = found[0]
    return _SHORT.get(character) or f"\\u{ord(character):04x}"


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
