"""Logging: one line an event, on standard error, the router's own and gunicorn's alike, as JSON or for a console."""

import logging
import os
import sys
from typing import Any

import msgspec
import structlog

from app.config.settings import Settings


def configure(settings: Settings) -> dict[str, Any]:
    """Set structlog up; answers the matching `logging` configuration, for gunicorn's `logconfig_dict`."""
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
    """Logs requests, whatever LOG_LEVEL is: the same lines, but written at once and past `logging`.

    Under overload there are thousands a second, and `logging` would take ten times as long for each as this does.
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
    # Plain tracebacks: the fancy ones print local variables, secrets among them.
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
