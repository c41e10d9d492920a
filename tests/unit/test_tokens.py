"""JSON Web Tokens: which are accepted, and that nothing else is, whatever it looks like."""

import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from app.auth.building import build_auth
from app.auth.caller import Identity
from app.auth.key_set import KeySet, public_keys
from app.auth.key_set_source import KeySetSource, _fetch
from app.auth.layouts import MAX_KEY_SET_BYTES
from app.auth.tokens import MAX_TOKEN_BYTES, TokenVerifier
from app.config.auth_settings import AuthSettings
from app.errors import AuthenticationUnavailable, KeysError, SettingsError, Unauthorized
from app.shared_memory.counters import InflightCounters
from tests.support.credentials import AUDIENCE, ISSUER, Issuer, KeySetServer, encoded
from tests.support.forks import Parent

HMAC_KEY = b"k" * 32
METRICS: Any = SimpleNamespace(jwks_refreshes=dict.fromkeys(("ok", "failed"), SimpleNamespace(inc=lambda: None)))


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """An issuer with a key of each kind."""
    issuer = Issuer()
    issuer.add_ec("ec")
    issuer.add_ec("ec384", ec.SECP384R1())
    issuer.add_ed25519("ed")
    return issuer


@pytest.fixture
def parent() -> Iterator[Parent]:
    """A shared table."""
    parent = Parent(limit=1)
    yield parent
    parent.close()


Verify = Callable[..., TokenVerifier]


@pytest.fixture
def verifier(parent: Parent, issuer: Issuer, tmp_path: Path) -> Verify:
    """Makes a verifier of the issuer's tokens."""

    def make(**members: Any) -> TokenVerifier:
        file = issuer.write(tmp_path / "jwks.json")
        given = {"jwt_issuer": ISSUER, "jwt_audience": (AUDIENCE,), "jwt_jwks": file, "jwt_leeway_s": 0, **members}
        source = KeySetSource(file, parent.table, METRICS)
        source.load()
        return TokenVerifier(AuthSettings(**given), HMAC_KEY, source)

    return make


def refused(verifier: TokenVerifier, token: str | bytes) -> Unauthorized:
    """The error for this token."""
    with pytest.raises(Unauthorized) as caught:
        verifier.verify(token if isinstance(token, bytes) else token.encode("latin-1", "replace"))
    return caught.value


@pytest.mark.parametrize(
    ("kid", "algorithm"), [("rsa", "RS256"), ("rsa", "PS512"), ("ec", "ES256"), ("ec384", "ES384"), ("ed", "EdDSA")]
)
def test_tokens_of_the_issuer_are_accepted(verifier: Verify, issuer: Issuer, kid: str, algorithm: str) -> None:
    """Every asymmetric algorithm, by the key of its type."""
    identity = verifier().verify(issuer.token(kid, algorithm).encode())
    assert (identity.tenant, identity.models, identity.credential) == ("t", (), "token")


def test_claims_name_tenant_and_models(verifier: Verify, issuer: Issuer) -> None:
    """A claim is found by its name, dots and all, or within objects; models are a list, or words."""
    nested = verifier(jwt_tenant_claim="org.team", jwt_models_claim="https://x.test/models")
    given: list[tuple[dict[str, Any], str, set[str]]] = [
        ({"org": {"team": "x"}, "https://x.test/models": ["a", "b"]}, "x", {"a", "b"}),
        ({"org": {"team": "x"}, "https://x.test/models": "a b"}, "x", {"a", "b"}),
        ({"org.team": "y", "https://x.test/models": []}, "y", set()),
    ]
    for claims, tenant, models in given:
        identity = nested.verify(issuer.token(**claims).encode())
        assert identity == Identity(tenant, (frozenset(models),), "token")
    lacking: list[dict[str, Any]] = [
        {"org": {"team": "x"}},
        {"https://x.test/models": ["a"]},
        {"org": "x", "https://x.test/models": ["a"]},
        {"org": {"team": "x"}, "https://x.test/models": 1},
    ]
    for claims in lacking:
        refused(nested, issuer.token(**claims))


NOW = int(time.time())
DAY_S = 86_400
"""Longer than a run of all tests, which begins at `NOW`."""

# Claims and headers that make a token invalid.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("expired", {"exp": NOW - 10}),
    ("no expiry", {"exp": None}),
    ("expiry that is no number", {"exp": "soon"}),
    ("not yet valid", {"nbf": NOW + DAY_S}),
    ("another audience", {"aud": "other"}),
    ("no audience", {"aud": None}),
    ("another issuer", {"iss": ISSUER + "/"}),
    ("no issuer", {"iss": None}),
    ("no tenant", {"sub": None}),
    ("empty tenant", {"sub": ""}),
    ("tenant with a line break", {"sub": "a\nb"}),
    ("extension", {"headers": {"crit": ["b64"], "b64": False}}),
    ("unknown extension", {"headers": {"crit": ["x"], "x": 1}}),
    ("no such key", {"headers": {"kid": "../../etc/passwd"}}),
    ("key id of a query", {"headers": {"kid": "x' UNION SELECT 'k"}}),
    ("key of another type", {"headers": {"kid": "ec"}}),
]


@pytest.mark.parametrize(("why", "changes"), WRONG, ids=[why for why, _ in WRONG])
def test_wrong_claims_and_headers_are_refused(
    verifier: Verify, issuer: Issuer, why: str, changes: dict[str, Any]
) -> None:
    """A token that the issuer signed is accepted only for this router, now, and as it is understood."""
    error = refused(verifier(), issuer.token(**changes))
    assert error.reason == ("expired" if why == "expired" else "invalid")


@pytest.mark.parametrize("claim", ["exp", "iss", "aud"])
def test_token_must_say_how_long_by_whom_and_for_whom_it_is(verifier: Verify, issuer: Issuer, claim: str) -> None:
    """A token without one of the three is refused, and told which are needed."""
    lacking: dict[str, Any] = {claim: None}
    error = refused(verifier(), issuer.token(**lacking))
    assert (error.reason, str(error)) == ("invalid", "the token must have the claims exp, iss, aud")


def _forged(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(sign(signed.encode()))}"


def test_forged_tokens_are_refused(verifier: Verify, issuer: Issuer) -> None:
    """`none` in any spelling; a public key as the secret of HS256, in each of its forms; a changed token; others' keys.

    Also where symmetric algorithms are accepted beside the asymmetric ones.
    """
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + DAY_S, "sub": "t"}
    public = issuer.keys["rsa"].public_key()
    forms = [
        public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    forms += [json.dumps(issuer.public["rsa"]).encode(), issuer.key_set()]
    for checks in (verifier(), verifier(jwt_algorithms=("RS256", "HS256"))):
        nothing: list[Any] = ["none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], {}]
        for none in nothing:
            for kid in ({}, {"kid": "rsa"}):
                refused(checks, _forged({"alg": none, **kid}, claims, lambda _: b""))
        for form in forms:
            for algorithm in ("HS256", "RS256"):
                sign = partial(hmac.digest, form, digest="sha256")
                refused(checks, _forged({"alg": algorithm, "kid": "rsa"}, claims, sign))
        head, payload, signature = issuer.token().split(".")
        refused(checks, f"{head}.{encoded({**claims, 'sub': 'admin'})}.{signature}")
        refused(checks, f"{head}.{payload}.")
        refused(checks, f"{head}.{payload}.{signature[:-4]}AAAA")
        stranger = Issuer()
        refused(checks, stranger.token())
        # RFC 7515 section 4.1: a key or its address in the header is never looked at.
        refused(checks, stranger.token(headers={"jwk": stranger.public["rsa"], "jku": "http://127.0.0.1:1/"}))


def test_symmetric_tokens_need_the_key_and_their_algorithm(verifier: Verify) -> None:
    """HS256 is accepted only where it is listed, with the key from its own file."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + DAY_S, "sub": "t"}
    token = jwt.encode(claims, HMAC_KEY, algorithm="HS256")
    assert verifier(jwt_algorithms=("HS256",)).verify(token.encode()).tenant == "t"
    refused(verifier(), token)
    refused(verifier(jwt_algorithms=("HS256",)), jwt.encode(claims, b"x" * 32, algorithm="HS256"))


def test_huge_and_nested_tokens_are_refused(verifier: Verify, issuer: Issuer) -> None:
    """Too long, of too many parts, nested without end, or a token within a token."""
    checks = verifier()
    refused(checks, issuer.token(padding="x" * MAX_TOKEN_BYTES))
    refused(checks, "a." * 5000 + "a")
    deep = b"[" * 4000 + b"]" * 4000
    for header, claims in ((deep, b"{}"), (b'{"alg":"RS256","kid":"rsa"}', deep), (b'{"alg":' + deep, b"{}")):
        refused(checks, f"{encoded(header)}.{encoded(claims)}.{encoded(b'x')}")
    inner = issuer.token()
    nested = jwt.api_jws.encode(inner.encode(), issuer.keys["rsa"], "RS256", {"kid": "rsa", "cty": "JWT"})
    refused(checks, nested)


# What a token may consist of. Made once: Hypothesis prepares a strategy when it first draws from it.
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HEADER = st.fixed_dictionaries({}, optional=dict.fromkeys(("kid", "crit", "b64", "typ", "jwk", "cty"), VALUE))
ALGORITHM = st.sampled_from(["RS256", "PS256", "ES256", "EdDSA", "HS256", "none"]) | VALUE
CLAIMS = st.fixed_dictionaries({}, optional=dict.fromkeys(("exp", "nbf", "iat", "iss", "aud", "sub", "jti"), VALUE))
PARTS = st.tuples(
    st.builds(lambda head, alg: encoded({**head, "alg": alg}), HEADER, ALGORITHM) | st.text(max_size=20),
    CLAIMS.map(encoded) | st.text(max_size=20),
    st.binary(max_size=300).map(encoded) | st.text(max_size=20),
)
FORGED = PARTS.map(".".join) | st.text(max_size=50)


@pytest.mark.slow
@effort(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
@given(FORGED, CLAIMS)
def test_any_token_is_accepted_or_refused(
    verifier: Verify, issuer: Issuer, forged: str, claims: dict[str, Any]
) -> None:
    """Whatever arrives, nothing but Unauthorized is raised, and only what the issuer signed is accepted."""
    checks = verifier()
    refused(checks, forged)
    signed = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + DAY_S, "sub": "t", **claims}
    # Signed as bytes: PyJWT makes no token of claims that have the wrong type, and other libraries do.
    token = jwt.api_jws.encode(json.dumps(signed).encode(), issuer.keys["ec"], "ES256", {"kid": "ec"})
    try:
        assert checks.verify(token.encode()).tenant == signed["sub"]
    except Unauthorized:
        pass


def test_verified_token_is_kept_until_it_expires(
    verifier: Verify, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is verified once; the token is refused from its expiry on all the same, leeway included."""
    checks, token = verifier(jwt_leeway_s=5), issuer.token(exp=NOW + DAY_S).encode()
    checks.verify(token)
    monkeypatch.setattr("app.auth.tokens.jwt.decode", None)
    checks.verify(token)
    monkeypatch.setattr("app.auth.tokens.time.time", lambda: NOW + DAY_S + 4.9)
    checks.verify(token)
    monkeypatch.setattr("app.auth.tokens.time.time", lambda: NOW + DAY_S + 5)
    assert refused(checks, token.decode()).reason == "expired"


def test_kept_tokens_are_bounded_and_end_with_their_keys(
    verifier: Verify, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are kept up to a number, and none outlives the key set by which it was verified."""
    monkeypatch.setattr("app.auth.tokens._MOST_KEPT", 2)
    checks = verifier()
    tokens = [issuer.token("ec", "ES256", jti=str(number)).encode() for number in range(3)]
    for token in tokens:
        checks.verify(token)
    assert list(checks._kept) == [hashlib.sha256(token).digest() for token in tokens[1:]]
    checks._keys._publish(Issuer().key_set())
    refused(checks, tokens[2].decode())


def test_key_set_takes_over_public_keys_only(issuer: Issuer) -> None:
    """Of private keys only the public part is published; short, symmetric and foreign keys are left out."""
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(issuer.keys["rsa"]))
    private["key_ops"] = ["verify", "sign"]
    assert private["d"]
    others: list[Any] = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"},
        {**issuer.public["rsa"], "use": "enc"},
        {**issuer.public["rsa"], "key_ops": ["encrypt"]},
        {**issuer.public["rsa"], "alg": "RSA-OAEP"},
        {**issuer.public["rsa"], "n": "AQAB"},
        {**issuer.public["ec"], "x": "AAAA"},
        {"kty": ["RSA"]},
        7,
    ]
    content = public_keys(json.dumps({"keys": [private, *others]}).encode(), "JWT_JWKS")
    (published,) = json.loads(content)
    assert published.keys() <= {"kty", "kid", "key_ops", "n", "e"}
    assert published["n"] == issuer.public["rsa"]["n"]
    with pytest.raises(KeysError, match="must hold at least one public key"):
        public_keys(json.dumps({"keys": others}).encode(), "JWT_JWKS")


def test_token_without_a_key_id_needs_a_set_of_one(issuer: Issuer) -> None:
    """Among several keys of a type, the token has to say which one; an id that is there twice is nobody's."""
    one, two = issuer.public["rsa"], Issuer().public["rsa"]
    assert KeySet(json.dumps([one, issuer.public["ec"]]).encode()).find(None, "RS256") is not None
    assert KeySet(json.dumps([one, two]).encode()).find(None, "RS256") is None
    assert KeySet(json.dumps([one, two]).encode()).find("rsa", "RS256") is None
    assert KeySet(json.dumps([one]).encode()).find("rsa", "ES256") is None


def test_without_any_key_a_token_can_not_be_judged(parent: Parent, issuer: Issuer) -> None:
    """Until the issuer was reached once, a token may be valid: 503 and Retry-After, not 401."""
    source = KeySetSource("http://127.0.0.1:1/jwks", parent.table, METRICS)
    checks = TokenVerifier(AuthSettings(jwt_issuer=ISSUER, jwt_audience=(AUDIENCE,)), None, source)
    with pytest.raises(AuthenticationUnavailable) as caught:
        checks.verify(issuer.token().encode())
    assert caught.value.retry_after == 10


def test_without_pyjwt_the_start_says_what_to_install(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional, so its absence is a mistake in the settings, and nothing else needs it."""
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    for module in ("app.auth.tokens", "app.auth.key_set_source", "app.auth.key_set"):
        monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    given = AuthSettings(jwt_issuer=ISSUER, jwt_audience=(AUDIENCE,), jwt_jwks="/nowhere")
    counters = InflightCounters(parent.table, "tenant_")
    with pytest.raises(SettingsError, match=r"pip install 'inference-router\[jwt\]'"):
        build_auth(given, parent.table, counters, METRICS)


def test_unknown_key_is_asked_for_rarely(parent: Parent, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers fetch once in 10 seconds together, whatever ids come; then a new key is known at once.

    A failure keeps the keys that were there.
    """
    now = [1_000_000]
    monkeypatch.setattr("app.auth.key_set_source._now_ms", lambda: now[0])
    later = Issuer()
    with KeySetServer(later) as server:
        settings = AuthSettings(jwt_issuer=ISSUER, jwt_audience=(AUDIENCE,))
        sources = [KeySetSource(server.url, parent.table, METRICS) for _ in range(2)]
        checks = [TokenVerifier(settings, None, source) for source in sources]
        for each in checks:
            assert each.verify(later.token().encode()).tenant == "t"
        later.add_rsa("later")
        for each in checks * 5:
            refused(each, later.token("later"))
        assert server.asked == 1
        now[0] += 10_000
        server.down = True
        refused(checks[1], later.token("later"))
        assert checks[0].verify(later.token().encode()).tenant == "t"
        assert sources[0].is_stale, "as the metrics say"
        server.down = False
        refused(checks[0], later.token("later"))
        assert server.asked == 2
        now[0] += 10_000
        for each in checks:
            assert each.verify(later.token("later").encode()).tenant == "t"
        assert server.asked == 3
        assert not sources[0].is_stale
        for after_ms, asked in ((299_999, 3), (1, 4)):
            now[0] += after_ms
            for source in sources:
                source.refresh_if_due()
            gevent.wait(timeout=5)
            assert server.asked == asked


@pytest.mark.parametrize(
    ("status", "head", "body"),
    [
        (302, "Location: http://127.0.0.1:1/", b""),
        (200, "X: y", b"x" * (MAX_KEY_SET_BYTES + 1)),
        (200, "X: y", b"[]"),
        (404, "X: y", b""),
    ],
)
def test_fetch_is_bounded_and_goes_nowhere_else(status: int, head: str, body: bytes) -> None:
    """No redirect is followed, nothing longer than a key set is kept, and no error shows the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                with contextlib.suppress(OSError):  # the fetch ends when it has read too much
                    sock.sendall(f"HTTP/1.0 {status} x\r\n{head}\r\n\r\n".encode() + body)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(KeysError) as caught:
            public_keys(_fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/secret"), "JWT_JWKS")
        thread.join()
    assert "secret" not in str(caught.value)
