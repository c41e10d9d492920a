"""The project's own configuration of gunicorn, with the clock of `router_demand_requests` running faster.

In the simulation, what lasts 15 s passes in a fraction of a second (fleet.py). The router averages over that time, and
measures a second apart; both shrink alike here. Nothing else is changed: what is read is the router's own gauge.
"""

import runpy

globals().update(runpy.run_path("gunicorn.conf.py"))

from app.admission import demand  # noqa: E402  # after gunicorn.conf.py, which patches what they import
from app.server import worker  # noqa: E402
from tests.autoscaling.clock import MEASURED_EACH_S, WINDOW_S  # noqa: E402

demand.WINDOW_S = WINDOW_S
worker._HEARTBEAT_S = MEASURED_EACH_S
