"""A JSON Web Key Set (RFC 7517) becomes the public keys that verify tokens.

Only members that say what a public key is are taken over. So nothing secret is published, even if a file holds private
keys. Symmetric keys (`oct`) are left out: a set is public, and whoever reads it could sign with them.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jwt
import msgspec

from app.errors import KeysError

_MOST_KEYS = 100
_PUBLIC = ("kty", "kid", "use", "key_ops", "alg", "crv", "n", "e", "x", "y")
_LEAST_RSA_DIGITS = 340
"""Of the modulus in base64url: 2048 bits have 342, and none shorter is safe (RFC 7518 section 3.3)."""
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}

Jwk = Mapping[str, Any]


def public_keys(content: bytes, source: str) -> bytes:
    """Returns the keys of this set that may verify signatures, as JSON. Raises KeysError if there are none."""
    try:
        keys = msgspec.json.decode(content, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise KeysError(f"{source}: must be a JSON object with a list `keys` (RFC 7517)") from None
    if not isinstance(keys, list) or len(keys) > _MOST_KEYS:
        raise KeysError(f"{source}: must hold a list `keys`, of at most {_MOST_KEYS}")
    usable = [{name: key[name] for name in _PUBLIC if name in key} for key in keys if _is_usable(key)]
    if not usable:
        raise KeysError(
            f"{source}: must hold at least one public key for signatures, of RSA (2048 bits or more), EC or OKP"
        )
    return msgspec.json.encode(usable)


def _is_usable(key: Any) -> bool:
    if not isinstance(key, dict) or not isinstance(key.get("kid", ""), str) or key.get("use", "sig") != "sig":
        return False
    operations = key.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return False
    return any(_fits(key, algorithm) and _built(key, algorithm) is not None for algorithm in _candidates(key))


def _candidates(key: Jwk) -> Iterable[str]:
    return ("RS256", "PS256", *_CURVES) if "alg" not in key else (key["alg"],)


def _fits(key: Jwk, algorithm: object) -> bool:
    """Whether the key is of the type, and on the curve, that the algorithm has, and for no other algorithm."""
    if not isinstance(algorithm, str) or key.get("alg", algorithm) != algorithm:
        return False
    if algorithm in _CURVES:
        return key.get("kty") == ("OKP" if algorithm == "EdDSA" else "EC") and key.get("crv") == _CURVES[algorithm]
    modulus = key.get("n")
    is_rsa = algorithm[:2] in ("RS", "PS") and key.get("kty") == "RSA"
    return is_rsa and isinstance(modulus, str) and len(modulus) >= _LEAST_RSA_DIGITS


def _built(key: Jwk, algorithm: str) -> jwt.PyJWK | None:
    try:
        return jwt.PyJWK({name: key[name] for name in _PUBLIC if name in key}, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError, OverflowError):
        return None


class KeySet:
    """The keys of one publication."""

    def __init__(self, content: bytes = b"[]") -> None:
        """`content` is what `public_keys` returned."""
        self._keys: list[Jwk] = msgspec.json.decode(content)
        self._built = lru_cache(maxsize=1024)(self._build)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Returns the key of this id for the algorithm; without an id, the only key that the algorithm could use.

        A token chooses among the keys by its `kid`, and nothing else: the text is compared, and never used as a path,
        a URL or a query.
        """
        found = [
            at for at, key in enumerate(self._keys) if (kid is None or key.get("kid") == kid) and _fits(key, algorithm)
        ]
        return self._built(found[0], algorithm) if len(found) == 1 else None

    def _build(self, at: int, algorithm: str) -> jwt.PyJWK | None:
        return _built(self._keys[at], algorithm)
