"""Logging: one line per event on standard error, as JSON or for a console. gunicorn's events have the same form."""

import logging
import os
import sys
from typing import Any

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
        render = [_console()]
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
        processors.append(_console())
        output = structlog.PrintLogger(stream or _nowhere("w"))
    levels = structlog.make_filtering_bound_logger(logging.INFO)
    return structlog.wrap_logger(output, processors, levels).bind(logger="router.access")


def _nowhere(mode: str) -> Any:
    return open(os.devnull, mode)  # for as long as the process lives


def _json(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event)


def _console() -> structlog.dev.ConsoleRenderer:
    # Plain tracebacks: the default ones print local variables, which may be secrets.
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
