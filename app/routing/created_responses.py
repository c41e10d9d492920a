"""Which endpoint created which response of OpenAI's `/v1/responses`, in shared memory.

The response is kept by the endpoint that created it, so later requests about it go there, through whichever worker. The
table knows the newest `MAX_RESPONSES` ids; the one made longest ago is replaced. An entry has the hashes of four
names: the id, the model, the endpoint's URL, and the tenant. It names no counter, so it never leads to an endpoint that
has got the counter of another one since: what has no such URL any more is not found.

Entries form a ring, which tells the oldest. Those whose ids hash to one **chain** are linked, so that a lookup compares
one or two of them. All stores are made under the lock. A holder that is SIGKILLed leaves a prefix of the stores of
`note`, and each prefix is safe:

1. The cursor moves on. Killed after this: the entry stays as it was, and has another turn once the ring is round.
2. The entry leaves its chain, by one store into its predecessor. Killed after this: it is in no chain, so nobody finds
   it. When its turn comes again there is nothing to unlink.
3. Its words are stored. Nobody finds it yet.
4. One store makes it the first of its new chain. So what is found is always whole.
5. An older entry of the same id leaves the chain, again by one store. It was not found any more since the last one.
   So a chain stays short, also if a model server gives many responses one id.
"""

from typing import NamedTuple

from app.errors import ResponseNotFound
from app.shared_memory.table import Layout, SharedTable, name_hash

MAX_RESPONSES = 1 << 16
"""At 48 bytes each they take 3.1 MB. At 10 new responses a second one is known for nearly two hours, while a response
that runs in the background is asked for within minutes."""
_ARRAYS = (
    "response_chains",
    "response_next",
    "response_ids",
    "response_models",
    "response_endpoints",
    "response_tenants",
)
LAYOUT = Layout(cells=("responses_cursor",), arrays=dict.fromkeys(_ARRAYS, MAX_RESPONSES))


class Creator(NamedTuple):
    """Who created a response, by the hashes of their names (`name_hash`)."""

    model: int
    endpoint: int
    """That of the URL; of the empty text for a model without endpoints."""
    tenant: int
    """Whose request it was; that of the empty text without authentication."""


class CreatedResponses:
    """The table, in one process."""

    def __init__(self, table: SharedTable) -> None:
        self._lock = table.lock
        self._cursor = table.cell("responses_cursor")  # the entry that is replaced next
        self._chains = table.array("response_chains")  # by the hash of an id: the first entry, counted from 1; 0: none
        self._next = table.array("response_next")  # by entry: the one after it in its chain, counted from 1; 0: none
        self._ids = table.array("response_ids")
        self._models = table.array("response_models")
        self._endpoints = table.array("response_endpoints")
        self._tenants = table.array("response_tenants")
        self._size = len(self._ids)

    def note(self, response_id: str, model: str, endpoint: str, tenant: str) -> None:
        """Take note of a response that was created now. An older one of the same id is not found any more."""
        key, model_hash, endpoint_hash = name_hash(response_id), name_hash(model), name_hash(endpoint)
        tenant_hash = name_hash(tenant)
        chain = key % self._size
        with self._lock:
            at = self._cursor[0]
            self._cursor[0] = (at + 1) % self._size
            self._unlink(at)
            self._ids[at] = key
            self._models[at] = model_hash
            self._endpoints[at] = endpoint_hash
            self._tenants[at] = tenant_hash
            self._next[at] = self._chains[chain]
            self._chains[chain] = at + 1
            self._unlink_older(at)

    def find(self, response_id: str) -> Creator | None:
        """Returns who created the response with this id, or None if that is not known."""
        key = name_hash(response_id)
        with self._lock:
            entry = self._chains[key % self._size]
            while entry:
                if self._ids[entry - 1] == key:
                    return Creator(self._models[entry - 1], self._endpoints[entry - 1], self._tenants[entry - 1])
                entry = self._next[entry - 1]
        return None

    def _unlink_older(self, at: int) -> None:
        """Take the next entry of the same id out of the chain, if there is one."""
        before, entry = at, self._next[at]
        while entry:
            if self._ids[entry - 1] == self._ids[at]:
                self._next[before] = self._next[entry - 1]
                return
            before, entry = entry - 1, self._next[entry - 1]

    def _unlink(self, at: int) -> None:
        """Take an entry out of the chain of its id, if it is in it."""
        chain = self._ids[at] % self._size
        entry = self._chains[chain]
        if entry == at + 1:
            self._chains[chain] = self._next[at]
            return
        while entry:
            before, entry = entry - 1, self._next[entry - 1]
            if entry == at + 1:
                self._next[before] = self._next[at]
                return


def response_not_found(response_id: str) -> ResponseNotFound:
    """Returns the error for a response that is not known, or not the caller's."""
    return ResponseNotFound(f"no endpoint is known to have created a response {response_id[:100]!r}")
