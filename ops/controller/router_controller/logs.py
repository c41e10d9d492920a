"""Logging: one line per event on standard error, as JSON or for a console."""

import logging
import sys

import structlog


def configure(level: str, form: str) -> None:
    """Configure structlog."""
    render: list[structlog.typing.Processor]
    render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if form == "console":
        render = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
