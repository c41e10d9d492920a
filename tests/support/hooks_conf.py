"""gunicorn.conf.py with an operator's hooks added, which write down each request: for test_worker_seams.py.

TEST_HOOKS=/a/file gunicorn -c python:tests.support.hooks_conf

Where a file of that name with the ending `.hold` exists, the next worker takes it, and goes on once it is removed.
"""

import os
import time
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from typing import Any  # noqa: E402

_router_post_fork = globals()["post_fork"]


def post_fork(arbiter: Any, worker: Any) -> None:
    """The router's hook, after the worker was held where it has no handlers of signals yet."""
    taken = Path(f"{os.environ['TEST_HOOKS']}.taken")
    try:
        taken.with_suffix(".hold").rename(taken)
    except FileNotFoundError:
        pass
    else:
        while taken.exists():
            time.sleep(0.01)
    _router_post_fork(arbiter, worker)


def pre_request(worker: Any, req: Any) -> None:
    """gunicorn's hook before a request."""
    _write(f"pre {req.method} {req.path}")


def post_request(worker: Any, req: Any, environ: dict[str, Any], resp: Any) -> None:
    """gunicorn's hook after a request."""
    _write(f"post {req.method} {environ['PATH_INFO']} {resp.status}")


def _write(line: str) -> None:
    with Path(os.environ["TEST_HOOKS"]).open("a", encoding="utf-8") as log:
        log.write(line + "\n")
