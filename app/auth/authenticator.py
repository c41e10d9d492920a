"""Who sends a request: by the header of a trusted gateway, a key or a token, or the certificate of the connection."""

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from app.admission.tenant_limit import TenantLimits
from app.auth.basic_password import password_in
from app.auth.caller import Caller, Identity
from app.auth.key_ring import KeyRing
from app.errors import Unauthorized

if TYPE_CHECKING:
    from app.auth.tokens import TokenVerifier

CERTIFICATE_NAME = "router.client_certificate_name"
"""The key in an environ of the name in the client's certificate, which the server has verified."""
MISSING = "a credential is needed: Authorization: Bearer, or x-api-key"
_LONGEST_TENANT = 200


class TrustedHeader:
    """The header in which gateways name the tenant."""

    def __init__(self, name: str, networks: Sequence[str]) -> None:
        self._key = "HTTP_" + name.upper().replace("-", "_")
        self._networks = [ip_network(network) for network in networks]
        self._known: dict[str, bool] = {}

    def tenant(self, environ: dict[str, Any]) -> str | None:
        """Returns the tenant that a trusted gateway names, or None.

        A header of anyone else is removed: it must not reach a model server, which may trust it. Raises Unauthorized
        for a header of a gateway that is empty, or there twice: a client may have added the other one.
        """
        value = environ.get(self._key)
        if value is None:
            return None
        if not self._is_trusted(environ.get("REMOTE_ADDR", "")):
            del environ[self._key]
            return None
        tenant = str(value).strip()
        if not tenant or "," in tenant or len(tenant) > _LONGEST_TENANT or not tenant.isprintable():
            raise Unauthorized("the header of the gateway names no tenant, or several", "invalid")
        return tenant

    def _is_trusted(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= 4096:  # there may be any number of peers
                self._known.clear()
            known = self._known[address] = self._is_within(address)
        return known

    def _is_within(self, address: str) -> bool:
        try:
            peer = ip_address(address)
        except ValueError:  # a Unix socket has no address
            return False
        return any(peer in network for network in self._networks)


class Authenticator:
    """Finds the caller of a request."""

    def __init__(
        self,
        ring: KeyRing,
        limits: TenantLimits,
        *,
        has_keys: bool,
        tokens: "TokenVerifier | None" = None,
        header: TrustedHeader | None = None,
    ) -> None:
        self._ring = ring
        self._limits = limits
        self._has_keys = has_keys
        self._tokens = tokens
        self._header = header

    def authenticate(self, environ: dict[str, Any]) -> Caller:
        """Returns the caller. Raises Unauthorized, or AuthenticationUnavailable.

        A gateway's header counts first. A key or token that is given must be valid, whatever else there is, unless
        neither is accepted at all: libraries send some key always.
        """
        tenant = None if self._header is None else self._header.tenant(environ)
        if tenant is not None:
            return self._caller(self._ring.limited(Identity(tenant, (), "header")))
        if self._has_keys or self._tokens is not None:
            secret = credential_in(environ)
            if secret is not None:
                return self._caller(self._by_secret(secret))
        name = environ.get(CERTIFICATE_NAME)
        if name:
            return self._caller(self._ring.limited(Identity(str(name), (), "certificate")))
        raise Unauthorized(MISSING, "missing")

    def _caller(self, identity: Identity) -> Caller:
        return Caller(identity, self._limits)

    def _by_secret(self, secret: bytes) -> Identity:
        if self._has_keys:
            identity = self._ring.find(secret)
            if identity is not None:
                return identity
        if self._tokens is not None and secret.count(b".") == 2:
            return self._ring.limited(self._tokens.verify(secret))
        raise Unauthorized("the key is not known", "invalid")


def check_admin_key(environ: Mapping[str, Any], digests: Sequence[bytes]) -> None:
    """Raises Unauthorized unless the request has one of these keys, as a key or as the password of a browser."""
    secret = credential_in(environ)
    if secret is None:
        secret = password_in(environ.get("HTTP_AUTHORIZATION", ""))
    if secret is None:
        raise Unauthorized("the operators' key is needed", "missing", basic=True)
    digest = sha256(secret).digest()
    matches = [hmac.compare_digest(digest, each) for each in digests]
    if not any(matches):
        raise Unauthorized("the key is not the operators' key", "invalid", basic=True)


def credential_in(environ: Mapping[str, Any]) -> bytes | None:
    """Returns the bearer token or the API key of a request, or None. The token counts if there are both."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return str(token).strip().encode("latin-1", "replace")
    key = environ.get("HTTP_X_API_KEY")
    return None if key is None else str(key).strip().encode("latin-1", "replace")
