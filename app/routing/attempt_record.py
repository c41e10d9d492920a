"""What an attempt leaves for the record of its request (api/request_recorder.py)."""

from app.errors import NoEndpoint


class PoolMembers:
    """The endpoints that a choice is made among, as a record names them."""

    __slots__ = ("hashes", "policy", "size")

    def __init__(self, size: int, hashes: "memoryview[int]", policy: int) -> None:
        self.size = size
        self.hashes = hashes
        """Of the URLs of the first `MOST_CANDIDATES` or more."""
        self.policy = policy
        """Its number in records."""


class AttemptRecord:
    """One attempt, or a choice that found no endpoint."""

    __slots__ = ("code", "endpoint_hash", "endpoint_url", "pool", "seen", "took_s")

    def __init__(
        self,
        pool: PoolMembers,
        seen: list[int],
        code: str = NoEndpoint.code,
        endpoint_url: str = "",
        endpoint_hash: int = 0,
    ) -> None:
        """Without more than `pool` and `seen`: of a choice that found no endpoint."""
        self.pool = pool
        self.seen = seen
        """What the choice has seen of the first endpoints of the pool (candidates.py)."""
        self.code = code
        """How it ended: the status, or what went wrong; empty until then."""
        self.endpoint_url = endpoint_url
        """As in metrics and logs; empty: no endpoint was found."""
        self.endpoint_hash = endpoint_hash
        self.took_s = 0.0
