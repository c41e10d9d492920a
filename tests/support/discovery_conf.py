"""gunicorn.conf.py with a name server and an API server of the test's own, which no environment variable can name.

TEST_DISCOVERY=/a/folder gunicorn -c python:tests.support.discovery_conf

The folder has `resolv.conf`, `dns_port` (a number), and the service account's `token` and `ca.crt`.
"""

import os
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from app.discovery import api_server, dns_lookup, dns_source  # noqa: E402

_FOLDER = Path(os.environ["TEST_DISCOVERY"])

dns_lookup.RESOLV_CONF = _FOLDER / "resolv.conf"
dns_lookup.PORT = int((_FOLDER / "dns_port").read_text())
dns_lookup._LIFETIME_S = 1.0
dns_source.FLOOR_S = dns_source.EMPTY_S = 0.2
api_server.SERVICE_ACCOUNT = _FOLDER
