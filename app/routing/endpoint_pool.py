"""One version of a model: its endpoints, the choice among them, and one attempt at one of them."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import structlog

from app.config import route_schema as routes
from app.errors import ClientGone, UpstreamError
from app.net.http_fields import Headers
from app.observability.metrics import Metrics
from app.protocols import Call, Reply
from app.routing.outlier_detection import Outcome, OutlierDetector
from app.routing.policies import POLICIES, Choice
from app.shared_memory.counters import MAX_IDS, InflightCounters
from app.shared_memory.table import SharedTable, name_hash, now_ms
from app.upstream.headers import retry_after_s, to_client
from app.upstream.pool import Answer, Pool

ARRAYS = {"turns": MAX_IDS}
"""A count of choices for every version, at the place of its first endpoint."""

_TURNS = 1 << 32
_READ_WHOLE_BYTES = 1 << 16
"""Up to this length an answer is read before any of it is passed on: one write, and no half an answer if it breaks."""
_FAILURES = frozenset((500, 502, 503, 504))
_ASK_FOR_PATIENCE = frozenset((429, 503))

_log = structlog.get_logger("router.endpoints")


class Endpoint(NamedTuple):
    """A model server, as one worker sees it."""

    name: str
    """Its address, as in metrics and logs."""
    place: int
    """Where its requests are counted (usage.py)."""
    pool: Pool
    head: str
    """What every request has in its head: Host, and the credential if there is one."""
    base_path: str


class Shared(NamedTuple):
    """What all workers share of the endpoints, and the metrics."""

    table: SharedTable
    usage: InflightCounters
    states: OutlierDetector
    metrics: Metrics


class Version:
    """The endpoints of one version of a model, in one worker."""

    def __init__(self, route: routes.Model, version: routes.Version, endpoints: Sequence[Endpoint], shared: Shared):
        self.name = version.name
        self.weight = version.weight
        self.upstream_model = version.upstream_model or route.name
        self.upstream_version = version.upstream_version or (None if len(route.versions) == 1 else "")
        self.route = route
        self.endpoints = endpoints
        self.shared = shared
        self.places = [endpoint.place for endpoint in endpoints]
        self._ids = [name_hash(endpoint.name) for endpoint in endpoints]
        self._policy = POLICIES[route.balancing]
        self._turn = shared.table.array("turns")[self.places[0] :]

    def choose(self, key: bytes, tried: Sequence[int] = ()) -> "Attempt | None":
        """An attempt at the endpoint that the policy says, or None if none may be tried that hasn't been."""
        usage, states = self.shared.usage, self.shared.states
        with self.shared.table.lock:
            # What is known of the loads and the choice made of it are one step: no worker chooses in between. To be
            # counted is one store, into our own row: a worker that is killed here or later is not counted any more.
            now = now_ms()
            may = [at for at, place in enumerate(self.places) if place not in tried and states.is_available(place, now)]
            if not may:
                return None
            if not tried:  # a request takes one turn, however often it is tried: else an even number would miss some
                self._turn[0] = (self._turn[0] + 1) % _TURNS
            chosen = self.endpoints[may[0 if len(may) == 1 else self._preferred(may, key)]]
            usage.add(chosen.place)
            probe = states.begin(chosen.place, now)
        return Attempt(self, chosen, probe)

    def _preferred(self, may: Sequence[int], key: bytes) -> int:
        """Which of these the policy says, as an index into them."""
        loads = [self.shared.usage.total(self.places[at]) for at in may]
        ids = [self._ids[at] for at in may]
        return self._policy(Choice(ids, loads, self._turn[0], key, self.route.load_bound, self.route.load_floor))

    def retry_after(self) -> int | None:
        """Seconds until the first endpoint may be tried again, or None if nobody knows."""
        times = [at for place in self.places if (at := self.shared.states.available_at(place)) is not None]
        return max(1, -(-(min(times) - now_ms()) // 1000)) if times else None


class Attempt:
    """A request with one endpoint; it is counted there until it ends, which it does once."""

    __slots__ = ("_began", "_ended", "_probe", "endpoint", "version")

    def __init__(self, version: Version, endpoint: Endpoint, probe: bool) -> None:
        self.version = version
        self.endpoint = endpoint
        self._probe = probe
        self._began = time.monotonic()
        self._ended = False

    def send(self, call: Call, deadline: float) -> Reply:
        """Send the call; answers once the head of the answer is there. Raises an UpstreamError."""
        endpoint, metrics = self.endpoint, self.version.shared.metrics
        try:
            answer = endpoint.pool.send(
                _request(_renamed(call, self.version), endpoint),
                call.method,
                self.version.route.timeouts,
                deadline,
                on_stale=metrics.retries_child["stale_connection"].inc,
            )
        except BaseException as error:
            self._fail(error)
            raise
        status, headers, length, *_ = answer.head
        metrics.first_byte_child(self.version.route.name).observe(time.monotonic() - self._began)
        if status in _ASK_FOR_PATIENCE:
            self._heed(status, headers)
        if length is not None and length <= _READ_WHOLE_BYTES:
            try:
                whole = answer.whole()
            except BaseException as error:
                self._fail(error)
                raise
            self._answered(status)
            return Reply(status, to_client(headers), length, (whole,) if whole else (), _nothing)

        def close() -> None:
            answer.close()
            self.end(Outcome.ABANDONED, "499")

        return Reply(status, to_client(headers), length, self._pieces(answer), close)

    def end(self, outcome: Outcome, code: str) -> None:
        """It is over; only the first call counts. `code` is the status, or what went wrong."""
        if self._ended:
            return
        ejected = self._leave(outcome)
        metrics, model = self.version.shared.metrics, self.version.route.name
        metrics.endpoint_requests_child(self.endpoint.name, code).inc()
        metrics.upstream_seconds_child(model).observe(time.monotonic() - self._began)
        if ejected:
            _log.warning("endpoint ejected", endpoint=self.endpoint.name, model=model, reason=code)

    def give_up(self) -> None:
        """It won't be made after all, and counts as no request."""
        self._leave(Outcome.ABANDONED)

    def _leave(self, outcome: Outcome) -> bool:
        """Be counted with the endpoint no more; answers whether it was ejected for how this ended."""
        self._ended = True
        version, place = self.version, self.endpoint.place
        version.shared.usage.leave(place)
        return version.shared.states.end(
            place, outcome, probe=self._probe, peers=version.places, rules=version.route.ejection
        )

    def _heed(self, status: int, headers: Headers) -> None:
        """Leave the endpoint alone if it asks for that. With the client's own credentials, 429 speaks of the client."""
        seconds = None if status == 429 and self.version.route.forward_credentials else retry_after_s(headers)
        if seconds:
            self.version.shared.states.back_off(self.endpoint.place, seconds)

    def _pieces(self, answer: Answer) -> Iterator[bytes]:
        try:
            yield from answer.body()
        except BaseException as error:
            self._fail(error)
            raise
        answer.close()
        self._answered(answer.head.status)

    def _answered(self, status: int) -> None:
        self.end(Outcome.FAILURE if status in _FAILURES else Outcome.SUCCESS, str(status))

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, UpstreamError):
            self.end(Outcome.FAILURE, error.code)
        else:
            self.end(Outcome.ABANDONED, "499" if isinstance(error, (ClientGone, GeneratorExit)) else "500")


def _nothing() -> None:
    """There is nothing left to close."""


def _request(call: Call, endpoint: Endpoint) -> bytes:
    """The bytes of a whole request."""
    fields = "\r\n".join(map(": ".join, call.headers))
    length = f"content-length: {len(call.body)}\r\n" if call.body or call.method != "GET" else ""
    head = f"{call.method} {endpoint.base_path}{call.path} HTTP/1.1\r\n{endpoint.head}{length}{fields}\r\n\r\n"
    return head.encode("latin-1") + call.body


def _renamed(call: Call, version: Version) -> Call:
    """The call in the words of this version's endpoints."""
    if call.adapter is None or (call.model == version.upstream_model and version.upstream_version is None):
        return call
    path, body = call.adapter.encode(call, version.upstream_model, version.upstream_version)
    return call._replace(path=path, body=body)
