"""The endpoints of one version of a model, and the choice among them.

A request goes to an endpoint that is healthy, not ejected, and not backing off. Only an ejection keeps it away in any
case; the other two give way where nothing else is left (`Reach`).
"""

from collections.abc import Sequence

from app.config import route_schema
from app.native import now_ms
from app.observability.request_record import MOST_CANDIDATES, POLICY_NUMBERS
from app.routing.attempt import Attempt
from app.routing.attempt_record import AttemptRecord, PoolMembers
from app.routing.candidates import Reach, seen_among, words_of
from app.routing.endpoint import Endpoint, SharedRouting, Target
from app.routing.load_reports import LoadReports, loads_of, stale_ms
from app.routing.outlier_detection import PoolRules
from app.routing.policies import POLICIES, Choice, below_bound, least_inflight, least_of
from app.routing.prefix_history import Match, PrefixHistory, endpoint_mark
from app.routing.retry_budget import RetryBudget
from app.routing.route_store import LENGTH_BITS, cursor_of
from app.shared_memory.counters import MAX_IDS
from app.shared_memory.table import Layout, name_hash

LAYOUT = Layout(arrays={"turns": MAX_IDS})
"""A count of the choices of every pool, under the id of its first endpoint."""

_TURNS = 1 << 32
_UNSIGNED = (1 << 64) - 1
_WEIGHT = 1000
"""The unit of weights, so that slow start can take parts of it."""
_LEAST_SHARE = 10
"""Slow start begins with this part of the weight: with none, nothing would warm the endpoint up."""


class EndpointPool:
    """The endpoints of one version, in one worker."""

    def __init__(  # noqa: PLR0913, PLR0917  # what a pool consists of
        self,
        route: route_schema.Model,
        version: route_schema.Version,
        endpoints: Sequence[Endpoint],
        budget: RetryBudget,
        shared: SharedRouting,
        generation: int,
    ) -> None:
        """`generation` is that of the routes. No endpoints: discovery has found none."""
        self.name = version.name
        self.weight = version.weight
        self._endpoints = list(endpoints)
        self.size = len(endpoints)
        self._generation = generation
        self._cursor = cursor_of(shared.table)
        self._shared_ids = words_of(endpoint.shared_id for endpoint in endpoints)
        self._back_offs = words_of(endpoint.back_off for endpoint in endpoints)
        self._hashes = words_of(endpoint.url_hash for endpoint in endpoints)
        self._found = words_of(0 for _ in endpoints)
        """Which endpoints `_find` has found, as indices. Nothing yields between finding and choosing."""
        self._loads = words_of(0 for _ in endpoints)
        self._lock = shared.table.lock
        self._counters = shared.counters
        self._health = shared.health
        self._outliers = shared.outliers
        self._until_ms = shared.back_offs.until_ms
        self._turn = shared.table.array("turns")[self._shared_ids[0] if endpoints else 0 :]
        self._panic_threshold = route.health_check.panic_threshold
        self._load_bound = route.load_bound
        self._load_floor = route.load_floor
        self._set_policy(route, version, shared)
        self._set_target(route, version, budget, shared)

    def _set_policy(self, route: route_schema.Model, version: route_schema.Version, shared: SharedRouting) -> None:
        self._policy = POLICIES[route.balancing]
        self._slow_start_ms = int(route.slow_start_s * 1000)
        self._weights = words_of(endpoint.weight * _WEIGHT for endpoint in version.endpoints)
        self._grown = words_of(0 for _ in version.endpoints)
        """The weights of those found, now."""
        self._weighs = self._slow_start_ms > 0 or len(set(self._weights)) > 1
        self._reports = shared.loads if route.balancing == "least_load" else None
        self._stale_ms = stale_ms(route)
        self._history = shared.prefixes if route.balancing == "prefix" else None
        self._seed = name_hash(f"{route.name} {version.name}") & _UNSIGNED
        self._match: Match | None = None
        """The known beginning of the prompt that decided the last choice."""

    def _set_target(
        self, route: route_schema.Model, version: route_schema.Version, budget: RetryBudget, shared: SharedRouting
    ) -> None:
        self._target = Target(
            route,
            version.upstream_model or route.name,
            version.upstream_version or (None if len(route.versions) == 1 else ""),
            PoolRules(list(self._shared_ids), route.ejection, self._panic_threshold),
            budget,
            shared,
            PoolMembers(self.size, self._hashes, POLICY_NUMBERS[route.balancing]),
        )

    def choose(self, key: bytes, tried: Sequence[int] = (), reach: Reach = Reach.HEALTHY) -> Attempt | None:
        """Begin an attempt at the endpoint that the policy chooses, or return None if none is available.

        `tried` are the ids of the endpoints that this request has tried before.
        """
        match = self._history.find(key, self._seed) if self._history is not None and key else None
        self._lock.acquire()
        try:
            self._match = match
            # Reading the loads, choosing, and counting are one step: no other worker chooses in between. Counting is
            # one store into this worker's own row, so a worker that is killed here or later does not count any more.
            now = now_ms()
            count = self._find(tried, now, False, False)
            if count < self.size:
                count = self._widen(count, tried, reach, now)
            if not count:
                return None
            if not tried:  # a request takes one turn, however often it is retried: else some endpoints would be skipped
                self._turn[0] = (self._turn[0] + 1) % _TURNS
            at = self._found[self._preferred(count, key, now) if count > 1 else 0]
            seen = self._loads_seen() if count == self.size else self._seen(count, tried, now)
            chosen = self._endpoints[at]
            self._counters.add(self._shared_ids[at])
            trial = self._outliers.begin(self._shared_ids[at], now)
            match = self._match if count > 1 else None  # a choice of one was not decided by what is known
        finally:
            self._lock.release()
        if self._history is not None and key:
            self._history.remember(key, self._seed, endpoint_mark(self._hashes[at]), match)
        return Attempt(self._target, chosen, trial, seen)

    def begin_at(self, endpoint: int, pinned: bool) -> Attempt | None:
        """Begin an attempt at the endpoint whose URL has this hash, or return None if it is ejected or gone.

        Nor if it drains, unless the request is `pinned` to it: only this endpoint can serve what it is about. Nothing
        else keeps the request away: not its health, nor that it backs off. The pool `has` the endpoint.
        """
        at = list(self._hashes).index(endpoint)
        shared_id = self._shared_ids[at]
        with self._lock:
            now = now_ms()
            current = self._cursor[0] >> LENGTH_BITS
            if current != self._generation and not self._counters.is_current(shared_id, endpoint, current):
                return None  # see `_find`
            if self._health.is_ejected(shared_id, now) or (self._health.is_draining(shared_id) and not pinned):
                return None
            self._counters.add(shared_id)
            trial = self._outliers.begin(shared_id, now)
        return Attempt(self._target, self._endpoints[at], trial, [])

    def no_attempt(self) -> AttemptRecord:
        """Returns what is noted of a choice that found no endpoint."""
        with self._lock:
            return AttemptRecord(self._target.pool, self._seen(0, (), now_ms()))

    def has(self, endpoint: int) -> bool:
        """Whether the endpoint whose URL has this hash is in the pool."""
        return endpoint in self._hashes

    def is_usable(self) -> bool:
        """Whether requests can be served: an endpoint is up, or in panic one seems to serve all the same."""
        health = self._health
        served = [shared_id for shared_id in self._shared_ids if not health.is_draining(shared_id)]
        if any(health.is_up(shared_id) for shared_id in served):
            return True
        now = now_ms()
        return self._panics(now) and any(
            health.seems_to_serve(shared_id) and not health.is_ejected(shared_id, now) for shared_id in served
        )

    def is_known(self) -> bool:
        """Whether anything is known of any endpoint, good or bad."""
        return any(self._health.is_known(shared_id) for shared_id in self._shared_ids)

    def retry_after(self, endpoint: int = 0) -> int | None:
        """Returns the seconds until the first ejection ends, or None if health checks must decide.

        `endpoint`: only that of the endpoint whose URL has this hash counts, if it is not 0.
        """
        health, now = self._health, now_ms()
        panic = self._panics(now)
        times = []
        for one, url in zip(self._shared_ids, self._hashes, strict=True):
            until = health.unavailable_until(one)
            counts = (panic or not health.is_unhealthy(one)) and not health.is_draining(one)
            if until > now and (endpoint == url or (not endpoint and counts)):
                times.append(until)
        return max(1, -(-(min(times) - now) // 1000)) if times else None

    def _find(self, tried: Sequence[int], now: int, unhealthy: bool, backing_off: bool) -> int:
        """Find the endpoints that were not tried and are not ejected. Returns how many there are.

        `unhealthy`, `backing_off`: those that are count too.
        """
        count = 0
        # The request may have waited since it got this pool, and some of its endpoints may have gone meanwhile: those
        # get no new request. See counters.py for their ids. Whoever publishes holds the lock too.
        current = self._cursor[0] >> LENGTH_BITS
        outdated = current != self._generation
        for at in range(self.size):
            shared_id = self._shared_ids[at]
            if tried and shared_id in tried:
                continue
            if outdated and not self._counters.is_current(shared_id, self._hashes[at], current):
                continue
            if self._health.is_draining(shared_id):
                continue  # the flag is set under the lock too: no worker chooses the endpoint after that
            if self._health.is_ejected(shared_id, now) or not (unhealthy or not self._health.is_unhealthy(shared_id)):
                continue
            if backing_off or self._until_ms[self._back_offs[at]] <= now:
                self._found[count] = at
                count += 1
        return count

    def _loads_seen(self) -> list[int]:
        """Returns what a choice among all endpoints has seen, as candidates.py has it."""
        if self.size == 1:
            return [self._counters.total(self._shared_ids[0]) << 4]
        unit = 0 if self._reports is None else 8
        return [self._loads[at] << 4 | unit for at in range(min(self.size, MOST_CANDIDATES))]

    def _seen(self, count: int, tried: Sequence[int], now: int) -> list[int]:
        """Returns the same of a choice that found `count` of the endpoints, with what keeps the others out."""
        current = self._cursor[0] >> LENGTH_BITS
        ids = zip(self._shared_ids, self._hashes, strict=True)
        gone = {one for one, url in ids if not self._counters.is_current(one, url, current)}
        found = {self._shared_ids[at] for at in self._found[:count]}
        return seen_among(
            list(self._shared_ids[:MOST_CANDIDATES]), found, tried, gone, self._counters, self._health, now
        )

    def _widen(self, count: int, tried: Sequence[int], reach: Reach, now: int) -> int:
        """Find the endpoints that may be chosen where only `count` are simply available. Returns how many there are."""
        panic = self._panics(now)
        if not panic:
            if count or not reach & Reach.BACKING_OFF:
                return count
        elif not (count or reach & Reach.PANIC or self._find(tried, now, False, True)):
            return 0
        count = self._find(tried, now, panic, False)
        if count or not reach & Reach.BACKING_OFF:
            return count
        count = self._find(tried, now, panic, True)
        if count:
            self._found[0] = min(self._found[:count], key=self._back_off_ends_ms)
        return min(count, 1)

    def _back_off_ends_ms(self, at: int) -> int:
        return self._until_ms[self._back_offs[at]]

    def _panics(self, now: int) -> bool:
        return self._health.panics(self._target.rules.shared_ids, self._panic_threshold, now)

    def _preferred(self, count: int, key: bytes, now: int) -> int:
        """Returns which of those found the policy chooses, as an index into them."""
        for place in range(count):
            self._loads[place] = self._counters.total(self._shared_ids[self._found[place]])
        if self._reports is not None:
            self._estimate(self._reports, count, now)
        hashes = [self._hashes[at] for at in self._found[:count]] if key else ()
        choice = Choice(hashes, self._loads[:count], self._turn[0], key, self._load_bound, self._load_floor)
        if self._weighs:
            choice.weights = self._weights_of(count, now)
        if self._history is not None and key:
            return self._known(self._history, choice)
        return self._policy(choice)

    def _known(self, history: PrefixHistory, choice: Choice) -> int:
        """Returns the endpoint below the bound that has got the longest beginning of the prompt, or the least loaded.

        Of several endpoints that have got it the least loaded is taken.
        """
        below = below_bound(choice)
        match = self._match
        while match is not None:
            places = [at for at in below if endpoint_mark(choice.hashes[at]) in match.endpoints]
            if places:
                self._match = match
                return least_of(choice, places)
            match = history.find(choice.key, self._seed, match.place)  # seldom: the first one has no room
        self._match = None
        return least_inflight(choice)

    def _estimate(self, reports: LoadReports, count: int, now: int) -> None:
        """Put what the endpoints report, beside what they have of this router, in the place of the loads."""
        found = [reports.read(self._shared_ids[at], now, self._stale_ms) for at in self._found[:count]]
        for place, load in enumerate(loads_of(self._loads[:count], found)):
            self._loads[place] = load

    def _weights_of(self, count: int, now: int) -> Sequence[int]:
        """Returns the weights of those found. A weight grows linearly after its endpoint came into use."""
        # All workers compute the same from one word of shared memory and one clock, so nothing has to be agreed on.
        for place in range(count):
            at = self._found[place]
            weight = self._weights[at]
            if self._slow_start_ms:
                since = self._health.in_use_since(self._shared_ids[at])
                if since and now - since < self._slow_start_ms:
                    weight = max(weight // _LEAST_SHARE, weight * (now - since) // self._slow_start_ms)
            self._grown[place] = weight
        return self._grown[:count]
