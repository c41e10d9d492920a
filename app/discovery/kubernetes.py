"""Endpoints of a Kubernetes Service: its EndpointSlices are listed once, and then watched.

As the API concepts have it ("Efficient detection of changes"): the list has a resource version, and a watch from there
yields every change since, in order. Bookmarks move the version on without a change. A watch that ends goes on from the
last version. If that is too old by then (410 Gone, as a status or as an event), the list is made again. It is made
without a resource version, so it is never older than what was known.
"""

import random
from contextlib import closing
from http.client import GONE, TOO_MANY_REQUESTS
from typing import TypeVar

import gevent
import msgspec

from app.config.discovered import Source
from app.discovery.api_server import ApiServer, BadStatus, Status
from app.discovery.findings import BackOff, DiscoveryFailed, Findings
from app.discovery.slices import Slice, SliceList, urls_in
from app.native import monotonic

_FIRST_BACK_OFF_S = 0.5
_MOST_BACK_OFF_S = 30.0
_PAGE = "250"
_MOST_PAGES = 100
_LEAST_WATCH_S, _MOST_WATCH_S = 240, 300
"""How long a watch may last. Random, so that the watches of many pods don't end together."""
_MARGIN_S = 15
T = TypeVar("T")
_SHORT_WATCH_S = 1.0
"""A watch that ends sooner, and without an event, counts as a failure: else it would be made again at once."""


class _Event(msgspec.Struct):
    """A line of a watch."""

    type: str
    object: msgspec.Raw


class ServiceWatch:
    """The slices of one Service, as they are known."""

    def __init__(self, source: Source, api: ApiServer, findings: Findings) -> None:
        namespace, _, service = source.name.partition("/")
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._selector = {"labelSelector": f"kubernetes.io/service-name={service}"}
        self._port = source.port
        self._api = api
        self._findings = findings
        self._slices: dict[str, Slice] = {}
        self._version = ""
        """From where to watch; "": list first."""

    def follow(self) -> None:
        """Report the endpoints whenever they change. Never returns."""
        back_off = BackOff(_FIRST_BACK_OFF_S, _MOST_BACK_OFF_S)
        while True:
            began, least_s = monotonic(), 0.0
            try:
                if not self._version:
                    self._list()
                if self._watch():
                    back_off.reset()
                    continue
            except BadStatus as error:
                if error.status != TOO_MANY_REQUESTS:
                    self._version = ""
                if error.status != GONE:  # which is no failure: by it the API server asks for a new list
                    self._findings.failed(error)
                least_s = error.retry_after
            except DiscoveryFailed as error:
                self._findings.failed(error)
            if monotonic() - began > _MOST_BACK_OFF_S:
                back_off.reset()  # it worked for long enough
            gevent.sleep(back_off.wait_s(least_s))

    def _list(self) -> None:
        """Replace what is known by what is there now. Raises DiscoveryFailed."""
        slices: dict[str, Slice] = {}
        query = {**self._selector, "limit": _PAGE}
        for _ in range(_MOST_PAGES):
            page = _decode(self._api.get(self._path, query), SliceList)
            version = page.metadata.resource_version
            if page.kind != "EndpointSliceList" or not version:
                raise DiscoveryFailed("the API server returned no EndpointSliceList")
            slices.update({one.metadata.name: one for one in page.items or ()})
            if not page.metadata.continue_:
                self._slices, self._version = slices, version
                self._report()
                return
            query["continue"] = page.metadata.continue_
        raise DiscoveryFailed(f"the list of EndpointSlices has more than {_MOST_PAGES} pages")

    def _watch(self) -> bool:
        """Follow changes until the watch ends. Returns whether it was a normal one. Raises DiscoveryFailed."""
        began = monotonic()
        seconds = random.randint(_LEAST_WATCH_S, _MOST_WATCH_S)  # noqa: S311  # spreads load
        query = {
            **self._selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        events = 0
        with closing(self._api.lines(self._path, query, seconds + _MARGIN_S)) as lines:
            for line in lines:
                if not line:
                    self._findings.works()  # the watch is accepted
                else:
                    self._apply(line)
                    events += 1
        return bool(events) or monotonic() - began >= _SHORT_WATCH_S

    def _apply(self, line: bytes) -> None:
        """Apply one event. Raises DiscoveryFailed; what is known may be incomplete then, and is listed again."""
        try:
            event = _decode(line, _Event)
            if event.type == "ERROR":
                raise _decode(event.object, Status).error(500)
            changed = _decode(event.object, Slice)
            if event.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not changed.metadata.resource_version:
                raise DiscoveryFailed(f"the API server sent an event that is none: {event.type[:20]!r}")
        except DiscoveryFailed:
            self._version = ""
            raise
        self._version = changed.metadata.resource_version
        if event.type == "BOOKMARK":
            return
        if event.type == "DELETED":
            self._slices.pop(changed.metadata.name, None)
        else:
            self._slices[changed.metadata.name] = changed
        self._report()

    def _report(self) -> None:
        self._findings.found(urls_in(self._slices.values(), self._port))


def _decode(content: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DiscoveryFailed(f"the API server's response is not what it should be: {error}") from error
