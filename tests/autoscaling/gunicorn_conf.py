"""The project's own configuration of gunicorn, with a faster clock for `router_demand_requests`.

A load of the simulation lasts a fraction of a second (fleet.py). The router averages demand over 15 s and measures it
every second; both times shrink here to fit. Nothing else changes, so the gauge that is read is the router's own.
"""

import runpy

globals().update(runpy.run_path("gunicorn.conf.py"))

from app.admission import demand  # noqa: E402  # after gunicorn.conf.py, which patches what they import
from app.server import worker  # noqa: E402
from tests.autoscaling.clock import MEASURED_EACH_S, WINDOW_S  # noqa: E402

demand.WINDOW_S = WINDOW_S
worker._HEARTBEAT_S = MEASURED_EACH_S
