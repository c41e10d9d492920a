"""X-Request-Id, the header by which a client can follow its request."""

import re

from app.native import new_id

_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


def request_id(given: str | None) -> str:
    """Returns the client's own id if it is well-formed, else a new one."""
    return given if given and _WELL_FORMED_ID.fullmatch(given) else new_id()
