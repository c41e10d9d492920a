"""Authentication as the settings have it, built once, before any worker is forked."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from app.admission.tenant_limit import TenantLimits
from app.auth.authenticator import Authenticator, TrustedHeader
from app.auth.key_ring import KeyRing
from app.auth.keys_publisher import KeysPublisher
from app.config.auth_settings import AuthSettings
from app.errors import SettingsError
from app.observability.auth_metrics import AuthMetrics
from app.shared_memory.counters import InflightCounters
from app.shared_memory.table import SharedTable

if TYPE_CHECKING:
    from app.auth.key_set_source import KeySetSource
    from app.auth.tokens import TokenVerifier

_LEAST_KEY_BYTES = 32
_MOST_KEY_BYTES = 4096


class Auth(NamedTuple):
    """What authentication consists of."""

    counters: InflightCounters
    """The requests of each tenant."""
    authenticator: Authenticator | None = None
    """None: authentication is off, as is all that follows."""
    publisher: KeysPublisher | None = None
    limits: TenantLimits | None = None
    key_set: "KeySetSource | None" = None

    def inflight(self) -> dict[str, int]:
        """Returns how many requests each tenant has."""
        return {} if self.limits is None else self.limits.inflight()

    def tenants(self) -> Iterable[str]:
        """Returns the labels of the tenants that are counted apart."""
        return () if self.limits is None else self.limits.labels()

    def stale(self) -> dict[str, bool]:
        """Returns whether the keys file, and the key set of tokens, could not be used when it was last read."""
        sources = {"keys": self.publisher, "jwks": self.key_set}
        return {name: source.is_stale for name, source in sources.items() if source is not None}

    def republish(self) -> None:
        """Read the keys file again."""
        if self.publisher is not None:
            self.publisher.republish()

    def refresh(self) -> None:
        """Read again what has changed. The leader calls this every second."""
        if self.publisher is not None:
            self.publisher.republish_if_changed()
        if self.key_set is not None:
            self.key_set.refresh_if_due()


def build_auth(settings: AuthSettings, table: SharedTable, counters: InflightCounters, metrics: AuthMetrics) -> Auth:
    """Read and publish the keys. `counters` are those of tenants. Raises KeysError or SettingsError."""
    if not settings.authenticates:
        return Auth(counters)
    publisher = KeysPublisher(settings.keys_file, table, counters, metrics)
    publisher.publish()
    ring = KeyRing(publisher.document, counters)
    limits = TenantLimits(table, counters, publisher.document.cursor, ring.tenants)
    key_set, tokens = _tokens(settings, table, metrics)
    name, networks = settings.tenant_header, settings.trusted_proxies
    header = None if name is None else TrustedHeader(name, networks)
    has_keys = settings.keys_file is not None
    authenticator = Authenticator(ring, limits, has_keys=has_keys, tokens=tokens, header=header)
    return Auth(counters, authenticator, publisher, limits, key_set)


def _tokens(
    settings: AuthSettings, table: SharedTable, metrics: AuthMetrics
) -> "tuple[KeySetSource | None, TokenVerifier | None]":
    """Returns what verifies tokens, if they are accepted. Only then PyJWT is imported."""
    if settings.jwt_issuer is None:
        return None, None
    try:
        from app.auth.key_set_source import KeySetSource  # noqa: PLC0415
        from app.auth.tokens import TokenVerifier  # noqa: PLC0415
    except ImportError:
        raise _needs_pyjwt() from None
    key_set = KeySetSource(settings.jwt_jwks, table, metrics)
    key_set.load()
    return key_set, TokenVerifier(settings, _hmac_key(settings.jwt_hmac_key_file), key_set)


def check_tokens(settings: AuthSettings) -> None:
    """Look at what tokens are verified with, as the start does. Raises KeysError or SettingsError."""
    if settings.jwt_issuer is None:
        return
    try:
        from app.auth.key_set_source import check_key_set  # noqa: PLC0415
    except ImportError:
        raise _needs_pyjwt() from None
    _hmac_key(settings.jwt_hmac_key_file)
    if settings.jwt_jwks is not None and settings.jwt_jwks.startswith("/"):
        check_key_set(Path(settings.jwt_jwks))


def _needs_pyjwt() -> SettingsError:
    return SettingsError("JWT_ISSUER: needs PyJWT and cryptography: pip install 'inference-router[jwt]'")


def _hmac_key(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        with Path(file).open("rb") as opened:
            secret = opened.read(_MOST_KEY_BYTES + 1).strip()
    except OSError as error:
        raise SettingsError(f"JWT_HMAC_KEY_FILE={file!r}: can't be read: {error.strerror}") from None
    if not _LEAST_KEY_BYTES <= len(secret) <= _MOST_KEY_BYTES:
        raise SettingsError(
            f"JWT_HMAC_KEY_FILE={file!r}: must hold {_LEAST_KEY_BYTES} to {_MOST_KEY_BYTES} bytes, not counting "
            "blanks at its ends"
        )
    return secret
