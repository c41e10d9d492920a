"""The start: the environment becomes settings, the settings become the router. The one module that reads `os.environ`.

gunicorn.conf.py imports it in the arbiter, before any worker is forked: what is made here, all workers share.
"""

import logging.config
import os
import sys

from app.api.application import create_app
from app.config.cpus import usable_cores
from app.config.settings import load_settings
from app.errors import RouterError
from app.observability import logs
from app.server.hooks import Hooks

INHERITED = "ROUTER_INHERITED"
"""Set by a binary upgrade (USR2) for the program it starts; never set by a user."""

try:
    settings = load_settings(os.environ, usable_cores())
    log_config = logs.configure(settings)
    logging.config.dictConfig(log_config)
    lifecycle = Hooks(settings, dict(os.environ), INHERITED, os.environ.pop(INHERITED, None))
except RouterError as error:
    sys.exit(f"router: {error}")

application = create_app(settings, lifecycle.limiter, lifecycle.metrics, lifecycle.catalogue, lifecycle.drain)
if not os.environ.get("MAX_CONCURRENCY", "").strip():
    logging.getLogger("router").info("MAX_CONCURRENCY is not set: the default %d applies", settings.max_concurrency)
