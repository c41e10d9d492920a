"""The settings of authentication, and the rules that concern several of them (docs/security.md)."""

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from app.config.addresses import check_url
from app.errors import SettingsError

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")
_NO_TENANT_HEADERS = ("authorization", "connection", "content-length", "content-type", "host", "x-api-key")
_MAX_LEEWAY_S = 600


def setting(allowed: str, about: str, **bounds: Any) -> Meta:
    """Returns what is said of a setting, and what msgspec checks of it."""
    return Meta(description=about, extra={"allowed": allowed}, **bounds)


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who may use the router. All of it is off by default."""

    keys_file: Annotated[
        str | None,
        setting(
            "a path that ends in .toml, .yaml, .yml or .json",
            "API keys and tenants (docs/security.md), read again when it changes. Set: requests need a key.",
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None,
        setting("text", "Issuer of the JSON Web Tokens that are accepted, their `iss`. Set: tokens are accepted."),
    ] = None
    jwt_audience: Annotated[
        tuple[str, ...],
        setting("comma-separated texts", "Audiences of the tokens that are accepted; one of them is in their `aud`."),
    ] = ()
    jwt_jwks: Annotated[
        str | None,
        setting(
            "an http:// or https:// URL, or the absolute path of a file",
            "The issuer's key set (RFC 7517). It is fetched every 5 minutes, or read again when it changes.",
        ),
    ] = None
    jwt_algorithms: Annotated[
        tuple[str, ...],
        setting(
            f"of {', '.join((*ASYMMETRIC, *SYMMETRIC))}",
            "Signature algorithms that are accepted. The symmetric ones, HS…, need `JWT_SECRET_FILE`.",
        ),
    ] = ASYMMETRIC
    jwt_secret_file: Annotated[
        str | None,
        setting("the absolute path of a file of 32 bytes or more", "The secret of HS… tokens, read at the start."),
    ] = None
    jwt_leeway_s: Annotated[
        int,
        setting(
            f"0 to {_MAX_LEEWAY_S}",
            "How far the issuer's clock may be from the router's, in seconds.",
            ge=0,
            le=_MAX_LEEWAY_S,
        ),
    ] = 30
    jwt_tenant_claim: Annotated[
        str,
        setting("a claim's name, or names with dots between", "The claim that names the tenant. Each token has it."),
    ] = "sub"
    jwt_models_claim: Annotated[
        str | None,
        setting(
            "a claim's name, or names with dots between",
            "The claim that lists the models which the caller may use: a list, or words with blanks between. Set: each "
            "token has it. Unset: a token is for all models.",
        ),
    ] = None
    tenant_header: Annotated[
        str | None,
        setting(
            "the name of a header, together with TRUSTED_PROXIES",
            "A header in which a gateway names the tenant that it has authenticated.",
            pattern=r"^[A-Za-z0-9-]{1,64}\Z",
        ),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        setting(
            "comma-separated addresses and networks such as 10.1.0.0/16",
            "The gateways whose `TENANT_HEADER` is accepted, by the addresses of their connections.",
        ),
    ] = ()
    admin_key_sha256: Annotated[
        tuple[str, ...],
        setting(
            "comma-separated SHA-256 digests of 64 hexadecimal digits",
            "Digests of the keys with which `/metrics`, `/v2/models/stats` and the admin pages are read; several, so "
            "that keys can be rotated. Unset: these are open to all who reach them.",
        ),
    ] = ()

    @property
    def authenticates(self) -> bool:
        """Whether requests need a credential."""
        return bool(self.keys_file or self.jwt_issuer or self.tenant_header)


def _file(text: str) -> str:
    if not text.endswith((".toml", ".yaml", ".yml", ".json")):
        raise ValueError("the ending determines the format")
    return text


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


def _url_or_path(text: str) -> str:
    if not text.startswith("/"):
        check_url(text)
    return text


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _algorithms(text: str) -> tuple[str, ...]:
    unknown = set(_items(text)) - {*ASYMMETRIC, *SYMMETRIC}
    if unknown or not _items(text):
        raise ValueError("none of them may be another one")
    return _items(text)


def _networks(text: str) -> tuple[str, ...]:
    networks = [ip_network(item) for item in _items(text)]
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("every address would be a gateway's, and every client could name its tenant")
    return tuple(map(str, networks))


def _digests(text: str) -> tuple[str, ...]:
    if not all(re.fullmatch("[0-9A-Fa-f]{64}", item) for item in _items(text)):
        raise ValueError("a digest, and not the key itself")
    return tuple(item.lower() for item in _items(text))


CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "KEYS_FILE": _file,
    "JWT_AUDIENCE": _items,
    "JWT_JWKS": _url_or_path,
    "JWT_ALGORITHMS": _algorithms,
    "JWT_SECRET_FILE": _path,
    "TRUSTED_PROXIES": _networks,
    "ADMIN_KEY_SHA256": _digests,
}
"""What makes the value of a variable from its text. Raises ValueError."""

SECRET = frozenset(("ADMIN_KEY_SHA256",))
"""The variables whose text no error repeats: somebody may have set the key in place of its digest."""


def check_auth(settings: AuthSettings) -> None:
    """Raises SettingsError for settings that don't fit together."""
    given = {
        "JWT_AUDIENCE": settings.jwt_audience,
        "JWT_JWKS": settings.jwt_jwks,
        "JWT_SECRET_FILE": settings.jwt_secret_file,
        "JWT_MODELS_CLAIM": settings.jwt_models_claim,
    }
    if settings.jwt_issuer is None:
        for variable, value in given.items():
            if value:
                raise SettingsError(f"{variable}: must be set only together with JWT_ISSUER")
    else:
        _check_tokens(settings)
    if bool(settings.tenant_header) != bool(settings.trusted_proxies):
        present, other = ("TENANT_HEADER", "TRUSTED_PROXIES")[:: 1 if settings.tenant_header else -1]
        raise SettingsError(f"{present}: must be set only together with {other}")
    if (settings.tenant_header or "").lower() in _NO_TENANT_HEADERS:
        raise SettingsError(f"TENANT_HEADER={settings.tenant_header!r}: must be a header of the gateway's own")


def _check_tokens(settings: AuthSettings) -> None:
    symmetric = set(settings.jwt_algorithms) & set(SYMMETRIC)
    if not settings.jwt_audience:
        raise SettingsError("JWT_ISSUER: must be set only together with JWT_AUDIENCE")
    if bool(symmetric) != bool(settings.jwt_secret_file):
        raise SettingsError("JWT_SECRET_FILE: must be set if, and only if, JWT_ALGORITHMS names one of HS…")
    if bool(set(settings.jwt_algorithms) - symmetric) != bool(settings.jwt_jwks):
        raise SettingsError("JWT_JWKS: must be set if, and only if, JWT_ALGORITHMS names one that is not HS…")
