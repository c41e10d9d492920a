"""Members of a keys file without effect. No reason repeats a word of the file: it may be a key in the wrong place."""

import time
from collections.abc import Iterator

from app.config.keys_file import expires_at
from app.config.keys_schema import Keys
from app.config.route_schema import Routes
from app.config.routes_file.source import Path
from app.config.settings import Settings
from app.config.unused.in_routes import never_reached

_NOT_SERVED = "no model of this name is served"


def unused_in_keys(settings: Settings, routes: Routes, keys: Keys) -> Iterator[tuple[Path, str]]:
    """Yields the members that have no effect, and why."""
    served = {name: model.name for model in routes.models for name in (model.name, *model.aliases)}
    allowed = {tenant.name: _named(tenant.models, served) for tenant in keys.tenants}
    room = settings.max_concurrency + settings.queue_size
    for at, key in enumerate(keys.keys):
        yield from _unserved(("keys", at), key.models, served)
        own, others = _named(key.models, served), allowed.get(key.tenant)
        if expires_at(key) <= time.time():
            yield ("keys", at), "it has expired"
        elif own and others and not own & others:
            yield ("keys", at), "its tenant may use none of its models"
    by_keys_only = not (settings.jwt_issuer or settings.tenant_header or settings.tls_client_ca_file)
    with_key = {key.tenant for key in keys.keys}
    for at, tenant in enumerate(keys.tenants):
        yield from _unserved(("tenants", at), tenant.models, served)
        if by_keys_only and tenant.name not in with_key:
            yield ("tenants", at), "no key is of this tenant, and callers have nothing but keys"
        elif tenant.max_concurrency is not None and tenant.max_concurrency >= room:
            yield ("tenants", at, "max_concurrency"), never_reached(room)


def _unserved(path: Path, models: tuple[str, ...] | None, served: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for number, name in enumerate(models or ()):
        if name not in served:
            yield (*path, "models", number), _NOT_SERVED


def _named(models: tuple[str, ...] | None, served: dict[str, str]) -> set[str]:
    """Returns the names of the models that these names and aliases are of; none where all models are meant."""
    return {served.get(name, name) for name in models or ()}
