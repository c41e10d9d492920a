"""`python -m router_controller`: campaign for the lease, and control InferenceServices while it is held."""

import asyncio
import os
import signal
import sys
import time

import structlog
from lightkube.core.exceptions import ConfigError

from router_controller import logs, web
from router_controller.api import connected
from router_controller.controller import Controller
from router_controller.leader import Leadership
from router_controller.settings import Settings, load_settings

STUCK_S = 30.0
"""An event loop that did nothing for so long is stuck, in seconds."""


async def main(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    log = structlog.get_logger(part="main")
    beat = [time.monotonic()]
    async with connected() as api:
        controller = Controller(api, settings)
        leadership = Leadership(api, settings.pod_namespace, settings.pod_name, settings.lease_duration_s)

        def illness() -> str | None:
            if time.monotonic() - beat[0] > STUCK_S:
                return "the event loop is stuck"
            silent_s = controller.silent_s()
            return f"a watch was silent for {silent_s:.0f} s" if silent_s > settings.watch_silent_s else None

        address, stop_serving = web.serve(*settings.address, illness)
        task = asyncio.ensure_future(leadership.run(controller.run))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        log.info("started", address=address, image=settings.router_image, namespace=settings.watch_namespace or "all")
        try:
            while not task.done():
                beat[0] = time.monotonic()
                await asyncio.wait({task}, timeout=1)
            if not task.cancelled():
                task.result()
        finally:
            stop_serving()
    log.info("stopped")


def run() -> int:
    """Returns the exit status."""
    try:
        settings = load_settings(os.environ)
        logs.configure(settings.log_level, settings.log_format)
        asyncio.run(main(settings))
    except (ValueError, ConfigError, OSError) as error:  # a setting, the kubeconfig, the port
        print(f"router-controller: {error}", file=sys.stderr)  # noqa: T201  # before anything logs
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
