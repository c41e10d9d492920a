"""gunicorn.conf.py with an operator's hooks added, which write down each request: for test_worker_seams.py.

TEST_HOOKS=/a/file gunicorn -c python:tests.support.hooks_conf
"""

import os
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from typing import Any  # noqa: E402


def pre_request(worker: Any, req: Any) -> None:
    """gunicorn's hook before a request."""
    _write(f"pre {req.method} {req.path}")


def post_request(worker: Any, req: Any, environ: dict[str, Any], resp: Any) -> None:
    """gunicorn's hook after a request."""
    _write(f"post {req.method} {environ['PATH_INFO']} {resp.status}")


def _write(line: str) -> None:
    with Path(os.environ["TEST_HOOKS"]).open("a", encoding="utf-8") as log:
        log.write(line + "\n")
