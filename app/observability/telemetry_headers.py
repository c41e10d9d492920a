"""The two headers that every response carries: X-Request-Id and Server-Timing."""

import random
import re

_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


def request_id(given: str | None) -> str:
    """Returns the client's own id if it is well formed, else a new one."""
    return given if given and _WELL_FORMED_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def server_timing(queue_s: float, model_s: float, total_s: float) -> str:
    """Returns the value of Server-Timing (W3C): milliseconds in the queue, in the model, and in total so far."""
    return f"queue;dur={queue_s * 1e3:.3f}, model;dur={model_s * 1e3:.3f}, total;dur={total_s * 1e3:.3f}"
