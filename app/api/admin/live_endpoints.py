"""The endpoints of live events: all of them, or those of which something has changed since the event before.

Most of hundreds of endpoints are idle from one second to the next. So each is looked at, which takes microseconds, but
only what has changed is made into what is shown. An endpoint has changed if its rates have, or its report, in which
times are points in time. How long a state lasts still, or how long ago an error was, is no change: whoever shows that
subtracts the time that has passed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from app.api.admin.resources import endpoint_shown
from app.native import now_ms
from app.observability.live_figures import EndpointRates
from app.routing.endpoint_report import EndpointReport


class LiveEndpoints:
    """What the newest look at the endpoints found, and the difference to the one before."""

    def __init__(self, reports: Callable[[], Iterable[EndpointReport]]) -> None:
        self._read = reports
        self._reports: dict[str, EndpointReport] = {}
        """By URL, in the order of the routes."""
        self._rates = EndpointRates()
        self._now = 0
        self._changed: Sequence[EndpointReport] = ()
        self.changed_wholly = True
        """Whether the difference is no smaller than the whole: endpoints came or went, or rates are known at last."""

    def look(self, rates: EndpointRates) -> None:
        """Look at the endpoints, which have these rates now."""
        before, rates_before = self._reports, self._rates
        self._now, self._rates = now_ms(), rates
        self._reports = {report.url: report for report in self._read()}
        self.changed_wholly = rates.idle != rates_before.idle or list(self._reports) != list(before)
        if not self.changed_wholly:
            was, busy, busy_before = before.values(), rates.busy, rates_before.busy
            self._changed = [
                report
                for report, old in zip(self._reports.values(), was, strict=True)
                if report != old or busy.get(report.url) != busy_before.get(report.url)
            ]

    def all(self) -> list[dict[str, Any]]:
        """Returns every endpoint as it is shown."""
        return [self._shown(report) for report in self._reports.values()]

    def changed(self) -> list[dict[str, Any]]:
        """Returns those that have changed. Only if they have not changed wholly."""
        return [self._shown(report) for report in self._changed]

    def _shown(self, report: EndpointReport) -> dict[str, Any]:
        return {**endpoint_shown(report, self._now), **self._rates.of(report.url)}
