"""gunicorn.conf.py with a name server and an API server of the test's own, which no environment variable can name.

TEST_DISCOVERY=/a/folder gunicorn -c python:tests.support.discovery_conf

The folder has `resolv.conf`, `dns_port` (a number), and the service account's `token` and `ca.crt`. Lookups are given
up after TEST_LOOKUP_S, and tried again soon.
"""

import os
from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from app.discovery import api_server, dns_lookup, dns_source, kubernetes  # noqa: E402

_FOLDER = Path(os.environ["TEST_DISCOVERY"])

dns_lookup.RESOLV_CONF = _FOLDER / "resolv.conf"
dns_lookup.PORT = int((_FOLDER / "dns_port").read_text())
dns_lookup._LIFETIME_S = float(os.environ.get("TEST_LOOKUP_S", "0.5"))
dns_source.FLOOR_S = dns_source.EMPTY_S = 0.2
dns_source.CEILING_S = kubernetes._MOST_BACK_OFF_S = 0.5
kubernetes._FIRST_BACK_OFF_S = 0.05
api_server.SERVICE_ACCOUNT = _FOLDER
