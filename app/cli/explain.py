"""`explain`: what the router did with one request, and why."""

from typing import Any
from urllib.parse import quote

import click

from app.cli import completions
from app.cli.admin import Admin, admin_option
from app.cli.admin_documents import RecordDocument
from app.cli.output import NO_ROUTER, json_option, print_json, print_table, shown

_TIMES = (("queue_ms", "in the queue"), ("model_ms", "in the model"), ("total_ms", "in all"))


@click.command(epilog=f"Exits with 0, or {NO_ROUTER}, or has no record of the request.")
@click.argument("request_id", shell_complete=completions.request_id)
@admin_option
@json_option
def command(request_id: str, admin: Admin, as_json: bool) -> None:
    """Explain what became of a request. REQUEST_ID is its X-Request-Id.

    Each worker remembers its last few thousand requests.
    """
    record = admin.get(f"/admin/requests/{quote(request_id, safe='')}", RecordDocument)
    if as_json:
        print_json(record)
        return
    about = [shown(record[name]) for name in ("time", "route", "model") if record.get(name)]
    click.echo(f"{shown(record['request_id'])}: {', '.join(about)}")
    click.echo(f"{record['status']}: {shown(record.get('explanation') or record.get('outcome'))}")
    times = [f"{record[name]:.1f} ms {words}" for name, words in _TIMES if record.get(name) is not None]
    if times:
        click.echo(", ".join(times))
    if record.get("attempts"):
        rows = [(one.get("endpoint"), one.get("outcome"), one.get("ms")) for one in record["attempts"]]
        print_table(("Attempt at", "Outcome", "ms"), rows)
    if record.get("candidates"):
        print_table((f"Candidate{_policy(record)}", "In flight", "Left out because"), _candidates(record))


def _candidates(record: dict[str, Any]) -> list[tuple[object, ...]]:
    return [(one.get("endpoint"), one.get("in_flight"), one.get("out")) for one in record["candidates"]]


def _policy(record: dict[str, Any]) -> str:
    return f" for {shown(record['policy'])}" if record.get("policy") else ""
