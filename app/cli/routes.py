"""`routes`: the models that a running router serves, and where from."""

import click

from app.cli.admin import Admin, admin_option
from app.cli.admin_documents import RoutesDocument
from app.cli.output import NO_ROUTER, json_option, print_json, print_table, shown


@click.command(epilog=f"Exits with 0, or {NO_ROUTER}.")
@admin_option
@json_option
def command(admin: Admin, as_json: bool) -> None:
    """Show the models that a running router serves."""
    routes = admin.get("/admin/routes", RoutesDocument)
    if as_json:
        print_json(routes)
        return
    print_table(
        ("Model", "Protocol", "Version", "Weight", "Balancing", "Limit", "Fallback", "Endpoints"),
        [
            (
                [model["name"], *model.get("aliases", ())],
                model.get("protocol"),
                version.get("name"),
                version.get("weight"),
                model.get("balancing"),
                model.get("max_concurrency"),
                model.get("fallback"),
                version.get("endpoints"),
            )
            for model in routes["models"]
            for version in model.get("versions") or [{}]
        ],
    )
    click.echo(f"generation {routes['generation']} of {shown(routes['source'])}, {routes['age_s']:.0f} s old")
    if routes.get("stale"):
        click.echo("the newest file is refused as invalid: the log says why, and so does `inference-router check`")
