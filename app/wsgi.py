"""The entry point: reads the environment, once, and builds the router from it. No other module reads `os.environ`, and
only observability/metrics.py writes to it: prometheus-client looks there for the directory of its files.

gunicorn.conf.py calls `start` in the arbiter, before any worker is forked. `app.wsgi:application` is the application of
that router. It admits requests in workers that the hooks of gunicorn.conf.py have given a slot; other WSGI servers do
not give them one, and get a 500 for every inference.
"""

import logging.config
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication

from app.bootstrap import Router, build_router
from app.config.cpus import usable_cpus
from app.config.settings import load_settings
from app.errors import RouterError
from app.observability import logs
from app.server.hooks import Hooks

INHERITED = "ROUTER_INHERITED"
"""The variable that hands the shared state to the next program of a binary upgrade (USR2). Users never set it."""


class Server(NamedTuple):
    """The router, and what gunicorn needs beside it."""

    router: Router
    hooks: Hooks
    log_config: dict[str, Any]


@cache
def start() -> Server:
    """Build the router from the environment of this process. Exits with one line if a setting is invalid.

    A process has one router and one set of hooks: on HUP gunicorn executes gunicorn.conf.py again, and gets the same.
    """
    try:
        settings = load_settings(with_log_format(os.environ), usable_cpus())
        log_config = logs.configure(settings)
        logging.config.dictConfig(log_config)
        router = build_router(settings, dict(os.environ), os.environ.pop(INHERITED, None))
    except RouterError as error:
        sys.exit(f"router: {error}")
    if not os.environ.get("MAX_CONCURRENCY", "").strip():
        logger = logging.getLogger("router")
        logger.info("MAX_CONCURRENCY is not set: the default %d applies", settings.max_concurrency)
    return Server(router, Hooks(router, INHERITED), log_config)


def with_log_format(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the environment with the LOG_FORMAT of people where it has none and standard error is a terminal."""
    if environ.get("LOG_FORMAT", "").strip() or sys.stderr is None or not sys.stderr.isatty():
        return environ
    return {**environ, "LOG_FORMAT": "console"}


def __getattr__(name: str) -> WSGIApplication:
    """Make `application` an attribute that is built when it is first asked for (PEP 562)."""
    if name == "application":
        return start().router.application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
