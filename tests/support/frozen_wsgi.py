"""The router, and a path at which a worker tells how many objects its collector never looks at.

For `gunicorn -c gunicorn.conf.py` to run.
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any

from app.wsgi import application as router

PATH = "/frozen"


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answers the path above; everything else is the router's."""
    if environ["PATH_INFO"] != PATH:
        return router(environ, start)
    count = str(gc.get_freeze_count()).encode()
    start("200 OK", [("Content-Length", str(len(count)))])
    return [count]
