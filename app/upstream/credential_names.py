"""Which header names say that the header carries a secret of the client.

A name is judged by its words, what is between its hyphens. What says nothing of the meaning is left out first: a number
or a version (`X-Api-Key-V2`, `Cookie2`), the s of a plural, and a last word that says only how the secret is carried
(`X-Token-Value`). Then a name is that of a credential by one of its words, or by its last word.

Names come in one case, so the words of `ApiKey` can't be told apart. So words are also known by how they end.
"""

import re

_ANYWHERE = frozenset(
    (
        "authorization",  # X-Original-Authorization, X-Goog-Iam-Authorization-Token
        "cert",  # X-Forwarded-Client-Cert, Client-Cert-Chain (RFC 9440)
        "certificate",
        "cred",  # the s of X-Creds is left out
        "credential",
        "csrf",
        "iam",  # X-Goog-Iam-Authority-Selector
        "jwt",  # X-Jwt-Payload
        "otp",
        "passcode",
        "passphrase",
        "passwd",
        "password",  # X-Password-Hash
        "pwd",
        "saml",  # X-Saml-Response
        "secret",  # X-Secret-Id
        "signature",  # X-Hub-Signature-256, Signature-Input (RFC 9421)
        "totp",
        "xsrf",
    )
)
"""Words that make a header a credential wherever they stand in its name."""

_LAST = frozenset(
    (
        "mfa",
        "oidc",  # X-Amzn-Oidc-Data, but not X-Amzn-Oidc-Identity
        "pass",  # X-User-Pass, but not X-Pass-Through
        "pin",
        "sid",  # Connect.sid
    )
)
"""Words that do so only as the last one: with another word after them they tend to mean something else."""

_ENDINGS = (
    "assertion",  # X-Jwt-Assertion
    "auth",  # X-Auth, X-OAuth, but not X-Auth-Request-User
    "authentication",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "dpop",  # RFC 9449
    "jwt",
    "otp",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "pwd",  # X-Userpwd
    "samlresponse",
    "secret",
    "signature",
    "userpass",
)
"""What the last word of a credential ends with."""

_ENDINGS_OF_NAME = (
    *("accesskey", "apikey", "appkey", "authkey", "clientkey", "licensekey", "masterkey", "passkey", "privatekey"),
    *("secretkey", "sessionkey", "sharedkey", "signingkey", "subscriptionkey", "userkey"),  # but not Monkey
    *("sessid", "sessionid"),  # X-Session-Id, PHPSESSID, JSESSIONID
)
"""What a whole name ends with when its words are joined: these words are also written as one."""

_CARRIERS = frozenset(("base", "basic", "code", "data", "digest", "header", "info", "raw", "string", "value"))
"""Last words that say how a secret is carried: X-Token-Value, X-Auth-Basic, X-Pin-Code. (`base` is that of Base64.)"""

_ORDINARY_KEYS = frozenset(
    ("cache", "foreign", "idempotency", "partition", "primary", "public", "routing", "sort", "websocket")
)
"""Words before a last `key` that make it no secret. After any other word, or none, it is one."""

_AMOUNTS = frozenset(
    (
        *("audio", "budget", "cached", "completion", "context", "count", "draft", "estimated", "first", "generated"),
        *("image", "input", "limit", "max", "maximum", "min", "minimum", "new", "num", "number", "output", "prefill"),
        *("prompt", "reasoning", "remaining", "requested", "reset", "stop", "thinking", "total", "used"),
    )
)
"""Words before a last `token` that make it one of text: Max-Tokens, X-Ratelimit-Remaining-Tokens, X-First-Token."""

_NO_LETTER_OR_DIGIT = re.compile("[^a-z0-9]+")


def is_credential(name: str) -> bool:
    """Whether the header of this name, in lower case, may carry a secret of the client (docs/protocols.md)."""
    words = _words(name)
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if not _ANYWHERE.isdisjoint(words):
        return True
    if last == "key":
        return before not in _ORDINARY_KEYS
    if last.endswith("token"):
        return (last[: -len("token")] or before) not in _AMOUNTS
    return last in _LAST or last.endswith(_ENDINGS) or "".join(words).endswith(_ENDINGS_OF_NAME)


def _words(name: str) -> list[str]:
    """Returns the words of a name that say what it means, without the s of a plural."""
    words = [word for each in _NO_LETTER_OR_DIGIT.split(name) if (word := _without_version(each))]
    words = [word[:-1] if word.endswith("s") and not word.endswith("ss") else word for word in words]
    while len(words) > 1 and words[-1] in _CARRIERS:
        words.pop()
    return words


def _without_version(word: str) -> str:
    stripped = word.rstrip("0123456789")
    return stripped if stripped == word else stripped.removesuffix("v")
