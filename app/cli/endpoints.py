"""`endpoints`: the endpoints of a running router, and why one gets no requests; drains them too."""

from collections.abc import Iterable
from typing import Any

import click

from app.cli.admin import Admin, admin_option
from app.cli.admin_documents import EndpointDocument, EndpointsDocument
from app.cli.completions import endpoint_id
from app.cli.output import NO_ROUTER, json_option, print_json, print_table, shown

COLUMNS = ("Id", "Endpoint", "Models", "State", "In flight", "Ends in", "Why", "Last error")


@click.command(epilog=f"Exits with 0, or {NO_ROUTER}, or has no endpoint of this ID.")
@click.option("--drain", type=int, metavar="ID", shell_complete=endpoint_id, help="Give this endpoint no new requests.")
@click.option("--undrain", type=int, metavar="ID", shell_complete=endpoint_id, help="Use it again.")
@admin_option
@json_option
def command(drain: int | None, undrain: int | None, admin: Admin, as_json: bool) -> None:
    """Show the endpoints of a running router, or drain one."""
    if drain is not None and undrain is not None:
        raise click.UsageError("--drain and --undrain exclude each other")
    if drain is not None:
        shown_ones = [admin.post(f"/admin/endpoints/{drain}/drain", EndpointDocument)]
    elif undrain is not None:
        shown_ones = [admin.post(f"/admin/endpoints/{undrain}/undrain", EndpointDocument)]
    else:
        shown_ones = admin.get("/admin/endpoints", EndpointsDocument)["endpoints"]
    if as_json:
        print_json({"endpoints": shown_ones})
    else:
        print_table(COLUMNS, rows(shown_ones))


def rows(endpoints: Iterable[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Returns the cells of endpoints of the admin API."""
    return [
        (
            one.get("id"),
            one["url"],
            one.get("models"),
            one.get("state"),
            one.get("in_flight"),
            None if one.get("until_s") is None else f"{one['until_s']:.1f} s",
            one.get("why"),
            _last_error(one.get("last_error")),
        )
        for one in endpoints
    ]


def _last_error(error: dict[str, Any] | None) -> str | None:
    return None if error is None else f"{shown(error.get('text'))}, {error.get('age_s', 0):.0f} s ago"
