"""Where the pages for operators are served: on the admin listener, and nowhere without one."""

import falcon


def check_admin_listener(req: falcon.Request, admin_port: str | None) -> None:
    """Raises HTTPNotFound unless there is an admin listener and the request came there."""
    if admin_port is None:
        raise falcon.HTTPNotFound(description="served on an admin listener only; set ADMIN_BIND to have one")
    if req.env["SERVER_PORT"] != admin_port:
        raise falcon.HTTPNotFound(description="served on the admin listener, ADMIN_BIND")
