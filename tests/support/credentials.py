"""Keys and tokens for tests: a keys file, an issuer with keys of its own, and what clients send."""

import base64
import json
import time
from collections.abc import Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.http_server import HttpServer, QuietConnections

ISSUER = "https://issuer.test"
AUDIENCE = "router"


def digest_of(secret: str) -> str:
    """What a keys file has of a key."""
    return sha256(secret.encode()).hexdigest()


def key(secret: str, tenant: str = "t", **members: object) -> dict[str, object]:
    """A key of a keys file; its id is the secret's end, so that each has its own."""
    return {"id": f"id-{secret[-6:]}", "sha256": digest_of(secret), "tenant": tenant, **members}


def write_keys(file: Path, *keys: dict[str, object], tenants: tuple[dict[str, object], ...] = ()) -> str:
    """Write a keys file; returns its path."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(json.dumps({"keys": keys, "tenants": tenants}))
    beside.replace(file)
    return str(file)


def bearer(secret: str) -> dict[str, str]:
    """The header of a client with this key or token."""
    return {"Authorization": f"Bearer {secret}"}


class Issuer:
    """Signs tokens, and has the set of its public keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.public: dict[str, dict[str, Any]] = {}
        self.add_rsa("rsa")

    def add_rsa(self, kid: str, bits: int = 2048) -> None:
        """Give it one more key."""
        self._add(kid, rsa.generate_private_key(65537, bits), RSAAlgorithm)

    def add_ec(self, kid: str, curve: ec.EllipticCurve | None = None) -> None:
        """Give it one more key."""
        self._add(kid, ec.generate_private_key(curve or ec.SECP256R1()), ECAlgorithm)

    def add_ed25519(self, kid: str) -> None:
        """Give it one more key."""
        self._add(kid, ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm)

    def _add(self, kid: str, private: Any, algorithm: Any) -> None:
        self.keys[kid] = private
        self.public[kid] = {**json.loads(algorithm.to_jwk(private.public_key())), "kid": kid}

    def key_set(self) -> bytes:
        """The set of its public keys."""
        return json.dumps({"keys": list(self.public.values())}).encode()

    def write(self, file: Path) -> str:
        """Write the set to a file; returns its path."""
        beside = file.with_name(f"{file.name}.new")
        beside.write_bytes(self.key_set())
        beside.replace(file)
        return str(file)

    def token(
        self,
        kid: str = "rsa",
        algorithm: str = "RS256",
        headers: Mapping[str, Any] | None = None,
        **claims: object,
    ) -> str:
        """A token that is accepted, unless these claims and headers say otherwise; a claim of None is left out."""
        all_claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "sub": "t", **claims}
        return jwt.encode(
            {name: value for name, value in all_claims.items() if value is not None},
            self.keys[kid],
            algorithm=algorithm,
            headers={"kid": kid, **(headers or {})},
        )


def encoded(value: object) -> str:
    """A part of a token: JSON, or bytes, in base64url."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class KeySetServer(HttpServer):
    """Serves a key set, and counts how often it was asked."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.asked = 0
        self.down = False
        outer = self

        class Handler(QuietConnections, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                content = b"" if outer.down else outer.issuer.key_set()
                self.send_response(503 if outer.down else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        super().__init__(Handler)
        self.url += "/jwks"
