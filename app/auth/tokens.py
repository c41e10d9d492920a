"""JSON Web Tokens (RFC 7519): verified by PyJWT, by the best current practices (RFC 8725).

The algorithms are the operator's, never the token's: a token's `alg` must be one of them, and its key must be of that
algorithm's type and curve. Public keys come from the issuer's set, the symmetric secret from its own file, so that
neither is ever taken for the other. `none` is no algorithm here.

A token that was verified is kept by its hash until it expires, or the issuer's keys change. So the signature costs
once, and not for every request.
"""

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import jwt

from app.auth.caller import Identity
from app.auth.key_set_source import RETRY_S, KeySetSource
from app.config.auth_settings import SYMMETRIC, AuthSettings
from app.errors import AuthenticationUnavailable, Unauthorized

MAX_TOKEN_BYTES = 16 << 10
_MOST_KEPT = 4096
_MOST_MODELS = 1000
_LONGEST_NAME = 200
_NOT_VERIFIED = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError, AttributeError, KeyError)
"""What PyJWT raises for a token that it does not accept, or can't read."""
_REQUIRED = ("exp", "iss", "aud")
_OPTIONS: Any = {"require": list(_REQUIRED), "enforce_minimum_key_length": True}


class _Kept(NamedTuple):
    """A token that was verified."""

    identity: Identity
    until: float


class TokenVerifier:
    """Verifies the tokens of one issuer."""

    def __init__(self, settings: AuthSettings, secret: bytes | None, keys: KeySetSource) -> None:
        """`secret` is that of symmetric algorithms."""
        self._algorithms = frozenset(settings.token_algorithms)
        self._issuer = settings.jwt_issuer or ""
        self._audience = settings.jwt_audience
        self._leeway_s = settings.jwt_leeway_s
        self._tenant_claim = settings.jwt_tenant_claim
        self._models_claim = settings.jwt_models_claim
        self._secret = secret
        self._keys = keys
        self._kept: dict[bytes, _Kept] = {}
        self._kept_of = 0
        """The cursor of the keys by which they were verified."""

    def verify(self, token: bytes) -> Identity:
        """Returns what the token says. Raises Unauthorized, or AuthenticationUnavailable without any public key."""
        if self._keys.cursor != self._kept_of:
            self._kept_of = self._keys.cursor
            self._kept.clear()
        digest = sha256(token).digest()
        kept = self._kept.get(digest)
        if kept is None:
            of = self._kept_of
            kept = self._verified(token)
            if of == self._keys.cursor:  # else it may have been verified by keys that were withdrawn meanwhile
                self._keep(digest, kept)
        if time.time() >= kept.until:
            raise Unauthorized("the token has expired", "expired")
        return kept.identity

    def _keep(self, digest: bytes, kept: _Kept) -> None:
        if len(self._kept) >= _MOST_KEPT:
            del self._kept[next(iter(self._kept))]  # the oldest
        self._kept[digest] = kept

    def _verified(self, token: bytes) -> _Kept:
        if len(token) > MAX_TOKEN_BYTES:
            raise _invalid("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
        except _NOT_VERIFIED:
            raise _invalid("the token can't be read") from None
        key, algorithm = self._key(header)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options=_OPTIONS,
            )
            until = float(claims["exp"]) + self._leeway_s
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired", "expired") from None
        except jwt.MissingRequiredClaimError:
            raise _invalid(f"the token must have the claims {', '.join(_REQUIRED)}") from None
        except jwt.ImmatureSignatureError:
            raise _invalid("the token is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise _invalid("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise _invalid("the token is of another issuer") from None
        except _NOT_VERIFIED:
            raise _invalid("the token is not valid") from None
        return _Kept(Identity(self._tenant(claims), self._models(claims), "token"), until)

    def _key(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        """Returns the key that verifies the token, and the algorithm."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise _invalid("the algorithm of the token is not accepted")
        if "crit" in header or "b64" in header:  # RFC 7515 section 4.1.11: what is not understood must be refused
            raise _invalid("the header of the token demands an extension")
        if algorithm in SYMMETRIC:
            assert self._secret is not None
            return self._secret, algorithm
        key = self._keys.current().find(kid, algorithm)
        if key is None:
            self._keys.refresh_for_token()
            key = self._keys.current().find(kid, algorithm)
        if key is None:
            if not self._keys.current():
                raise AuthenticationUnavailable("the keys of the issuer of tokens have not been fetched yet", RETRY_S)
            raise _invalid("the key of the token is not known")
        return key, algorithm

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        tenant = _claim(claims, self._tenant_claim)
        if not is_tenant(tenant):
            raise _invalid("the token names no tenant")
        return str(tenant)

    def _models(self, claims: Mapping[str, Any]) -> tuple[frozenset[str], ...]:
        if self._models_claim is None:
            return ()
        models = _claim(claims, self._models_claim)
        if isinstance(models, str):
            models = models.split()
        if not isinstance(models, list) or len(models) > _MOST_MODELS or not all(isinstance(m, str) for m in models):
            raise _invalid("the token does not say for which models it is")
        return (frozenset(models),)


def is_tenant(value: object) -> bool:
    """Whether this may be the name of a tenant."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable() and value.isascii()


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Returns the claim of this name, or else the one within objects to which the dots lead; None if there is none."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _invalid(message: str) -> Unauthorized:
    return Unauthorized(message, "invalid")
