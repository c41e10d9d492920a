"""The settings of authentication, and the rules that concern several of them (docs/security.md)."""

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from ipaddress import ip_network
from typing import Annotated, Any

from app.config.addresses import check_url
from app.config.setting import absolute_path, document_file, items, setting
from app.config.tls_settings import TlsSettings
from app.errors import SettingsError

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")
DIGESTS_OF_NOTHING = frozenset(sha256(text).hexdigest() for text in (b"", b"\n"))
"""What a shell makes of a variable that is not set."""
_NO_TENANT_HEADERS = ("authorization", "connection", "content-length", "content-type", "host", "x-api-key")
_MAX_LEEWAY_S = 600
_CLAIM = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}\Z"
_CLAIM_RULE = "a claim's name, or names with dots between"


class AuthSettings(TlsSettings, frozen=True, kw_only=True):
    """Who may use the router, and TLS, since a client's certificate is a credential. All of it is off by default."""

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
            f"comma-separated, of {', '.join((*ASYMMETRIC, *SYMMETRIC))}",
            "Signature algorithms that are accepted. Unset: all but HS…, which need `JWT_HMAC_KEY_FILE`.",
        ),
    ] = ()
    jwt_hmac_key_file: Annotated[
        str | None,
        setting("the absolute path of a file of 32 bytes or more", "The key of HS… tokens, read at the start."),
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
        setting(_CLAIM_RULE, "The claim that names the tenant. Each token has it.", pattern=_CLAIM),
    ] = "sub"
    jwt_models_claim: Annotated[
        str | None,
        setting(
            _CLAIM_RULE,
            "The claim that lists the models which the caller may use: a list, or words with blanks between. Set: each "
            "token has it. Unset: a token is for all models.",
        ),
    ] = None
    tenant_header: Annotated[
        str | None,
        setting(
            "the name of a header, together with TRUSTED_PROXIES",
            "A header in which a gateway names the tenant that it has authenticated.",
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
    def token_algorithms(self) -> tuple[str, ...]:
        """The signature algorithms of tokens."""
        return self.jwt_algorithms or ASYMMETRIC

    @property
    def authenticates(self) -> bool:
        """Whether requests need a credential."""
        return bool(self.keys_file or self.jwt_issuer or self.tenant_header or self.tls_client_ca_file)


def _header(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9-]{1,64}", text) or text.lower() in _NO_TENANT_HEADERS:
        raise ValueError("letters, digits and hyphens, and no header that means something else")
    return text


def _claim(text: str) -> str:
    if not re.fullmatch(_CLAIM, text):
        raise ValueError("letters, digits and . _ : / -")
    return text


def _url_or_path(text: str) -> str:
    if not text.startswith("/"):
        if "@" in text:
            raise ValueError("a URL must hold no credentials")
        check_url(text)
    return text


def _algorithms(text: str) -> tuple[str, ...]:
    unknown = set(items(text)) - {*ASYMMETRIC, *SYMMETRIC}
    if unknown or not items(text):
        raise ValueError("none of them may be another one")
    return items(text)


def _networks(text: str) -> tuple[str, ...]:
    try:
        networks = [ip_network(item) for item in items(text)]
    except ValueError:  # its message repeats the text
        raise ValueError("a network's address ends with zeros, where its length does") from None
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("every address would be a gateway's, and every client could name its tenant")
    return tuple(map(str, networks))


def _digests(text: str) -> tuple[str, ...]:
    digests = tuple(item.lower() for item in items(text))
    if not digests or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests):
        raise ValueError("a digest, and not the key itself")  # none at all would open the pages to everyone
    if not DIGESTS_OF_NOTHING.isdisjoint(digests):
        raise ValueError("that of an empty text is no key's: a bearer token may be empty")
    return digests


CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "KEYS_FILE": document_file,
    "JWT_AUDIENCE": items,
    "JWT_JWKS": _url_or_path,
    "JWT_ALGORITHMS": _algorithms,
    "JWT_HMAC_KEY_FILE": absolute_path,
    "JWT_MODELS_CLAIM": _claim,
    "TENANT_HEADER": _header,
    "TRUSTED_PROXIES": _networks,
    "ADMIN_KEY_SHA256": _digests,
    "TLS_CERT_FILE": absolute_path,
    "TLS_KEY_FILE": absolute_path,
    "TLS_CLIENT_CA_FILE": absolute_path,
}
"""What makes the value of a variable from its text. Raises ValueError."""

SECRET = frozenset(("ADMIN_KEY_SHA256", "JWT_HMAC_KEY_FILE", "TLS_KEY_FILE"))
"""The variables whose text no error of its form repeats: it may be the key, in place of its digest or its file."""


def check_auth(settings: AuthSettings) -> None:
    """Raises SettingsError for settings that don't fit together."""
    if settings.jwt_issuer is None:
        for name in ("jwt_audience", "jwt_jwks", "jwt_algorithms", "jwt_hmac_key_file", "jwt_models_claim"):
            if getattr(settings, name):
                raise _wrong(settings, name, "must be set only together with JWT_ISSUER")
    else:
        _check_tokens(settings)
    if bool(settings.tenant_header) != bool(settings.trusted_proxies):
        present, other = ("tenant_header", "trusted_proxies")[:: 1 if settings.tenant_header else -1]
        raise _wrong(settings, present, f"must be set only together with {other.upper()}")


def _check_tokens(settings: AuthSettings) -> None:
    symmetric = set(settings.token_algorithms) & set(SYMMETRIC)
    asymmetric = set(settings.token_algorithms) - symmetric
    for name, needed, why in (
        ("jwt_audience", True, ""),
        ("jwt_jwks", bool(asymmetric), " with these algorithms"),
        ("jwt_hmac_key_file", bool(symmetric), " with these algorithms"),
    ):
        given = bool(getattr(settings, name))
        if given and not needed:
            raise _wrong(settings, name, f"must not be set{why}; see JWT_ALGORITHMS")
        if needed and not given:
            at = "jwt_algorithms" if settings.jwt_algorithms and why else "jwt_issuer"
            raise _wrong(settings, at, f"must be set only together with {name.upper()}{why}")


def _wrong(settings: AuthSettings, name: str, problem: str) -> SettingsError:
    """Returns the error. It shows no value in which there may be a password."""
    value = getattr(settings, name)
    text = value if isinstance(value, str) else ",".join(value)
    return SettingsError(f"{name.upper()}={'***' if '@' in text else text!r}: {problem}")
