"""Who may enter is decided before anything else: before the body is read, a permit taken, or a model looked up.

It is a middleware of Falcon's, and there only if something is to be checked: without authentication a request pays
nothing for it. path_access.py says what a path needs. What operators read has a key of its own, whatever clients need,
so the admin API is checked here too, before `AdminAccess` looks at the listener. A preflight (CORS) is let through:
browsers send it without credentials, and it reaches nothing.
"""

from collections.abc import Sequence

import falcon
from falcon.routing import CompiledRouter

from app.api.cors import is_preflight
from app.api.exchange import ENVIRON_KEY
from app.api.path_access import Needs, needs
from app.auth.authenticator import Authenticator, check_admin_key
from app.errors import RouterError, Unauthorized
from app.observability.auth_metrics import AuthMetrics

REALM = "inference-router"


class Authentication:
    """The middleware."""

    def __init__(
        self,
        authenticator: Authenticator | None,
        admin_digests: Sequence[bytes],
        metrics: AuthMetrics,
        router: CompiledRouter,
        *,
        allows_preflight: bool,
    ) -> None:
        """Without an authenticator, only what operators read is checked."""
        self._authenticator = authenticator
        self._admin_digests = admin_digests
        self._metrics = metrics
        self._router = router
        self._allows_preflight = allows_preflight

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Give the exchange its caller. Raises Unauthorized, or AuthenticationUnavailable."""
        environ = req.env
        path = environ["PATH_INFO"]
        needed = needs(path)
        if needed is Needs.NOTHING:
            return
        try:
            if needed is Needs.ADMIN_KEY:
                if self._admin_digests:
                    check_admin_key(environ, self._admin_digests)
            elif self._authenticator is not None and not (self._allows_preflight and is_preflight(environ)):
                environ[ENVIRON_KEY].caller = self._authenticator.authenticate(environ)
        except RouterError as error:
            route = self._router.find(path, req)
            if route is not None:  # the error has the form of the operation's errors
                req.uri_template = route[3]
            if isinstance(error, Unauthorized):
                self._metrics.unauthorized[error.reason].inc()
                # A line for each: Falcon would join them, and browsers take no second challenge of a line for one.
                environ[ENVIRON_KEY].reply_headers = [("WWW-Authenticate", each) for each in challenges(error)]
            raise


def challenges(error: Unauthorized) -> list[str]:
    """Returns the values of WWW-Authenticate. Without a credential, a challenge has no error (RFC 6750 section 3.1)."""
    bearer = f'Bearer realm="{REALM}"'
    if error.reason != "missing":
        bearer += f', error="invalid_token", error_description="{error}"'
    return [bearer, f'Basic realm="{REALM}"'] if error.basic else [bearer]
