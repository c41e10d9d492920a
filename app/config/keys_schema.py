"""What a keys file may hold: API keys, by their digests, and tenants. docs/security.md has the tables."""

from typing import Annotated

import msgspec

from app.config.route_values import Count, OthersName, allows, means

MAX_TENANTS = 255

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,99}\Z"
TENANT_RULE = "1 to 100 letters, digits or any of . _ : @ / + -, the first a letter or digit"
TenantName = Annotated[str, allows(TENANT_RULE, pattern=TENANT_PATTERN)]
Digest = Annotated[
    str,
    allows("the SHA-256 of the key: 64 hexadecimal digits, and not the key itself", pattern="^[0-9A-Fa-f]{64}\\Z"),
]
Expiry = Annotated[
    str,
    allows(
        "a time with its zone, such as 2030-01-31T00:00:00Z",
        pattern=r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})\Z",
    ),
]


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who shares a limit. A tenant that has none, and is to use all models, need not be listed."""

    name: Annotated[TenantName, means("Name, as the keys have it, or a token's claim, a header, or a certificate.")]
    max_concurrency: Annotated[
        Count | None, means("Limit of the tenant's requests in progress or in the queue, over all workers.")
    ] = None
    models: Annotated[
        tuple[OthersName, ...] | None, means("The models that it may use, by name or alias. None: all.")
    ] = None


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key. A tenant may have several, so that a new one works before the old one is removed."""

    id: Annotated[TenantName, means("Name of the key, as the log shows it.")]
    sha256: Annotated[Digest, means("What is kept of the key.")]
    tenant: Annotated[TenantName, means("Whose key it is.")]
    models: Annotated[
        tuple[OthersName, ...] | None, means("The models that it is for, by name or alias. None: all.")
    ] = None
    expires: Annotated[Expiry | None, means("When it is accepted no more. None: never.")] = None


class Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. If it lists tenants, each key belongs to one of them."""

    keys: Annotated[tuple[Key, ...], means("API keys.")] = ()
    tenants: Annotated[tuple[Tenant, ...], means("Tenants, at most 255.")] = ()
