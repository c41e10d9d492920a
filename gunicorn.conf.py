"""gunicorn's configuration: `gunicorn -c gunicorn.conf.py`. Settings come from the environment (docs/settings.md)."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not gunicorn's, which reads this at HUP too
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until gunicorn takes it over: Ctrl-C prints no traceback

from gevent import monkey

monkey.patch_all()  # before anything else is imported: with preload_app, the worker's own patching comes too late

import os  # noqa: E402
import sys  # noqa: E402

# structlog imports rich where it is installed, as it is for the command line: 50 ms and megabytes that serve nothing.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # the import fails, as it expects

from app.errors import SettingsError  # noqa: E402
from app.server.fd_limits import reserve_connections  # noqa: E402
from app.server.worker_context import CUT_OFF_S  # noqa: E402
from app.wsgi import start  # noqa: E402

server = start()
settings = server.router.settings
hooks = server.hooks

wsgi_app = "app.wsgi:application"
worker_class = "app.server.worker.RouterWorker"
workers = settings.web_concurrency
try:
    worker_connections = reserve_connections(settings)
except SettingsError as error:
    raise SystemExit(f"router: {error}") from None
bind = settings.binds
backlog = 4096
keepalive = settings.keepalive_s
graceful_timeout = settings.graceful_timeout_s + CUT_OFF_S
timeout = 30  # seconds without a heartbeat until a worker counts as hung; it limits no request
preload_app = True
limit_request_line = 8190  # the most that gunicorn allows, and what RFC 9112 section 3 recommends at least
limit_request_fields = settings.max_header_fields
limit_request_field_size = settings.max_header_bytes  # the worker limits all fields together by it
secure_scheme_headers: dict[str, str] = {}  # none may make a request malformed; X-Forwarded-Proto goes on
forwarder_headers = ""  # no proxy may change the path by a header named SCRIPT_NAME or PATH_INFO
http_parser = "python"  # strict; gunicorn_h1c, if installed, takes bare LF, which other servers read differently
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # heartbeats on a disk could stall
control_socket_disable = True
loglevel = settings.log_level
logconfig_dict = server.log_config

when_ready = hooks.when_ready
on_reload = hooks.on_reload
pre_fork = hooks.pre_fork
post_fork = hooks.post_fork
post_worker_init = hooks.post_worker_init
child_exit = hooks.child_exit
pre_exec = hooks.pre_exec
on_exit = hooks.on_exit
