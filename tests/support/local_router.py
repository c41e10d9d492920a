"""A router in the test's own process, which is its arbiter and its only worker: no server, no socket."""

import atexit
import contextlib
import inspect
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from falcon import testing
from prometheus_client import values

from app.bootstrap import build_router
from app.config.settings import load_settings
from app.server.hooks import Hooks
from app.server.worker_context import WorkerContext


class HookedWorker:
    """What gunicorn's hooks see of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.alive = True
        self.context: WorkerContext

    def enter(self, context: WorkerContext) -> None:
        """See RouterWorker."""
        self.context = context


class Response(NamedTuple):
    """What the router returned to one request."""

    status: int
    headers: dict[str, str]
    body: str


class LocalRouter:
    """`with LocalRouter(folder, MAX_CONCURRENCY="1") as local:` builds it, and closes it afterwards."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self._value_class = values.ValueClass
        self._metrics_variable = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        given = {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"), "ACCESS_LOG": "off", **environ}
        others = len(values._multi_process_cleanups)
        self.router = build_router(load_settings(given, 1), environ)
        self._cleanups = values._multi_process_cleanups[others:]
        self.hooks = Hooks(self.router, "ROUTER_TEST_UNUSED")
        self.worker = HookedWorker(os.getpid())
        self.application = self.router.application
        self.headers: dict[str, str] = {}
        """What every request has, beside its own."""

    def start_worker(self) -> Self:
        """Make this process the router's worker."""
        self.hooks.pre_fork(None, self.worker)  # type: ignore[arg-type]  # the hooks use nothing else of either
        self.hooks.post_fork(None, self.worker)  # type: ignore[arg-type]
        self.hooks.post_worker_init(self.worker)  # type: ignore[arg-type]
        return self

    def __enter__(self) -> Self:
        return self.start_worker()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back descriptors and the metrics directory, and let prometheus-client count as before."""
        atexit.unregister(self.hooks._leave_unused)  # it would keep the router
        for connections in self.router.models.registry._connections.values():
            connections.close()
        values.ValueClass = self._value_class
        if self._metrics_variable is None:
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        else:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._metrics_variable
        if self.router.limiter._watcher is not None:
            self.router.limiter._watcher.close()
        self.router.metrics_directory.leave()
        for cleanup in self._cleanups:
            # Not called: it unmaps the files, which is refused while the router's cells view them.
            for file in inspect.getclosurevars(cleanup).nonlocals["files"].values():
                file._f.close()
            values._multi_process_cleanups.remove(cleanup)  # it would keep the router
        for fd in self.router.table.eventfds:
            os.close(fd)

    def ask(self, method: str, path: str, body: str | bytes = "", headers: dict[str, str] | None = None) -> Response:
        """Send a request as a WSGI server does."""
        start = testing.StartResponseMock()
        text = body.decode() if isinstance(body, bytes) else body
        fields = {**self.headers, **(headers or {})}
        environ = testing.create_environ(path, method=method, body=text, headers=fields, remote_addr="127.0.0.1")
        with contextlib.closing(self.application(environ, start)) as chunks:  # type: ignore[type-var]
            content = b"".join(chunks)
        return Response(int(str(start.status)[:3]), dict(start.headers or ()), content.decode(errors="replace"))
