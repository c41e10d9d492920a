"""`top`: the figures of a running router, once a second, in the terminal."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import click

from app.cli import endpoints
from app.cli.admin import Admin, admin_option
from app.cli.admin_documents import LiveEvent
from app.cli.output import NO_ROUTER, console, json_option, moves_cursor, print_json_line, shown, table

_TIMES = {"queue": "in the queue", "first_token": "to the first token", "in_model": "in the model"}
_BAR = 40


@click.command(epilog=f"Exits with 0, also at Ctrl-C, or {NO_ROUTER}, or its stream ends.")
@click.option(
    "--count", type=click.IntRange(1, 10**9), metavar="N", help="End after so many seconds. Default: at Ctrl-C."
)
@admin_option
@json_option
def command(count: int | None, admin: Admin, as_json: bool) -> None:
    """Watch a running router: load, queue, rates, times, models and endpoints.

    In a terminal it fills the screen; elsewhere, as in a pipe, it prints one picture after the other.
    """
    events = islice(whole(admin.events("/admin/live", LiveEvent)), count)
    try:
        if as_json:
            for event in events:
                print_json_line(event)
        else:
            _show(events)
    except KeyboardInterrupt:
        pass  # the way to end it


def whole(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the events, each with all endpoints: they may have only those that have changed since the one before.

    What an endpoint has that runs, as the age of an error, is made later by the time that has passed since.
    """
    known: dict[str, tuple[dict[str, Any], float]] = {}
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp() if "time" in event else 0.0
        if event.get("endpoints_complete", True):
            known.clear()
        known.update((one["url"], (one, at)) for one in event.get("endpoints", ()))
        yield {**event, "endpoints_complete": True, "endpoints": [_later(one, at - of) for one, of in known.values()]}


def _later(endpoint: dict[str, Any], passed_s: float) -> dict[str, Any]:
    until_s, error = endpoint.get("until_s"), endpoint.get("last_error")
    if passed_s and until_s is not None:
        endpoint = {**endpoint, "until_s": max(0.0, until_s - passed_s)}
    if passed_s and error is not None:
        endpoint = {**endpoint, "last_error": {**error, "age_s": error.get("age_s", 0.0) + passed_s}}
    return endpoint


def _show(events: Iterator[dict[str, Any]]) -> None:
    terminal = console()
    if not moves_cursor():
        for event in events:
            terminal.print(picture(event))
        return
    from rich.live import Live  # noqa: PLC0415  # see output.console

    with Live(console=terminal, screen=True, auto_refresh=False) as live:
        for event in events:
            live.update(picture(event), refresh=True)


def picture(event: dict[str, Any]) -> Any:
    """Returns what one event looks like."""
    from rich.console import Group  # noqa: PLC0415

    return Group(
        *_head(event),
        table(
            ("Model", "In flight", "Limit", "Queued", "Requests/s", "Rejected/s", "Failed/s"),
            [
                (
                    model["name"],
                    model.get("in_flight"),
                    model.get("limit"),
                    model.get("queued"),
                    *_rates(model),
                )
                for model in event.get("models", ())
            ],
        ),
        table(endpoints.COLUMNS, endpoints.rows(sorted(event.get("endpoints", ()), key=_is_used))),
    )


def _head(event: dict[str, Any]) -> Iterator[Any]:
    from rich.text import Text  # noqa: PLC0415

    inside, limit = event.get("in_flight", 0), event.get("limit") or 1
    full = min(_BAR, round(_BAR * inside / limit))
    color = "red" if inside >= limit else "green"
    yield Text.assemble(
        f"in flight {inside:>6} of {limit}  ",
        ("█" * full, color),
        ("░" * (_BAR - full), "dim"),
        f"  queued {event.get('queued', 0)}" + ("  DRAINING" if event.get("draining") else ""),
    )
    requests, rejected, failed = (_number(rate) for rate in _rates(event))
    yield Text(f"per second: {requests} requests, {rejected} rejected, {failed} failed")
    for timed, words in _TIMES.items():
        found = (event.get("times_s") or {}).get(timed)
        if found:
            values = ", ".join(f"{name} {seconds * 1000:,.0f} ms" for name, seconds in found.items())
            yield Text(f"time {words}: {values}")
    yield Text(f"{shown(event.get('time'))}, {shown(event.get('pod'))}, {shown(event.get('workers'))} workers", "dim")


def _is_used(endpoint: dict[str, Any]) -> bool:
    """Whether it gets requests. The others come first: a screen may be too small for all."""
    return endpoint.get("state") in ("healthy", "unknown")


def _rates(figures: dict[str, Any]) -> tuple[float | None, ...]:
    return tuple(figures.get(name) for name in ("requests_per_s", "rejections_per_s", "failures_per_s"))


def _number(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:,.1f}"  # noqa: RUF001  # as in tables
