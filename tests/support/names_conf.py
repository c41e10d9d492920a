"""gunicorn.conf.py with names of the test's own, which it may change at any time: for test_upstream_connections.py.

TEST_NAMES=/a/file gunicorn -c python:tests.support.names_conf

The file is a JSON object of names and lists of addresses. Without a list, a lookup `fails`, or `hangs` until the file
says something else. Addresses are old after half a second.
"""

import json
import os
import socket
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from typing import Any  # noqa: E402

from gevent.monkey import get_original  # noqa: E402

from app.upstream import resolver  # noqa: E402

_getaddrinfo = get_original("socket", "getaddrinfo")
_sleep = get_original("time", "sleep")


def _of_the_test(host: str, port: None, **options: Any) -> Any:
    """In the place of the system's resolver, in a thread as that one."""
    if options.get("flags"):  # it asks whether this is an address already, which takes no lookup
        return _getaddrinfo(host, port, **options)
    while (found := json.loads(Path(os.environ["TEST_NAMES"]).read_text()).get(host)) == "hangs":
        _sleep(0.01)
    if found == "fails":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return [one for address in found or [host] for one in _getaddrinfo(address, port, **options)]


resolver._getaddrinfo = _of_the_test
resolver.FRESH_S = 0.5
