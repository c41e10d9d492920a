"""The keys that are current, as one process looks them up.

The key of a request is hashed, and its digest looked up. So the time that the lookup takes says nothing of any key, but
for those whose digest begins alike, which nobody can choose. `compare_digest` then compares in constant time. One round
of SHA-256 is enough, because keys are random and long: nobody can try them all, as they can passwords.
"""

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

import msgspec

from app.admission.tenant_limit import OTHER, Tenants
from app.auth.caller import Identity
from app.auth.keys_publisher import tenants_in
from app.config.keys_file import expires_at
from app.config.keys_schema import Key, Keys
from app.errors import Unauthorized
from app.shared_memory.counters import InflightCounters
from app.shared_memory.shared_document import SharedDocument


class _Known(NamedTuple):
    """A key, as it is compared."""

    digest: bytes
    identity: Identity
    expires_at: float


class KeyRing:
    """See the module's opening lines."""

    def __init__(self, document: SharedDocument, counters: InflightCounters) -> None:
        self._document = document
        self._counters = counters
        self._cursor = document.cursor
        self._tenants = Tenants(0, {}, {})
        self._allowed: Mapping[str, frozenset[str]] = {}
        self._keys: Mapping[bytes, _Known] = {}

    def find(self, secret: bytes) -> Identity | None:
        """Returns whose key this is, None if it is nobody's. Raises Unauthorized for a key that has expired."""
        self.tenants()
        digest = sha256(secret).digest()
        known = self._keys.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if time.time() >= known.expires_at:
            raise Unauthorized("the key has expired", "expired")
        return known.identity

    def limited(self, identity: Identity) -> Identity:
        """Returns the identity of another credential, for those of its models that its tenant may use.

        A tenant that is not counted apart has the models of OTHER, as it has the limit of OTHER.
        """
        name = identity.tenant if identity.tenant in self.tenants().ids else OTHER
        return identity.within(self._allowed.get(name))

    def tenants(self) -> Tenants:
        """Returns the tenants that are current."""
        if self._cursor[0] != self._tenants.cursor:
            self._build()
        return self._tenants

    def _build(self) -> None:
        while True:
            cursor, content = self._document.read()
            keys = msgspec.json.decode(content, type=Keys)
            try:
                ids = self._counters.ids(tenants_in(keys))
            except KeyError:  # newer keys were published since, twice, and their tenants have the ids now
                continue
            break
        self._allowed = {one.name: frozenset(one.models) for one in keys.tenants if one.models is not None}
        self._keys = {(known := self._known(key)).digest: known for key in keys.keys}
        limits = {one.name: one.max_concurrency for one in keys.tenants if one.max_concurrency is not None}
        self._tenants = Tenants(cursor, ids, limits)

    def _known(self, key: Key) -> _Known:
        models = () if key.models is None else (frozenset(key.models),)
        identity = Identity(key.tenant, models, key.id).within(self._allowed.get(key.tenant))
        return _Known(bytes.fromhex(key.sha256), identity, expires_at(key))
