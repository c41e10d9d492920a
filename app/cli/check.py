"""`check`: whether a router could start with these settings and routes, for people and for CI."""

from pathlib import Path
from typing import Any

import click

from app.cli.findings import Findings, check, shown_routes, sources_of
from app.cli.output import json_option, print_json, print_table, shown
from app.config.shown_settings import shown_settings


@click.command(epilog="Exits with 0 if a router could start so, or 1 if anything is wrong.")
@click.option("--routes", type=click.Path(dir_okay=False, path_type=Path), help="In place of ROUTES_FILE and BACKENDS.")
@json_option
@click.pass_context
def command(context: click.Context, routes: Path | None, as_json: bool) -> None:
    """Check settings and routes, and show what would be used.

    Tells everything that is wrong, routes with file and line. Warns of settings and members that have no effect. Shows
    no secret.
    """
    environ = dict(context.obj)
    if routes is not None:
        environ["ROUTES_FILE"] = str(routes)
        environ.pop("BACKENDS", None)
    findings = check(environ)
    if as_json:
        print_json(_document(findings))
    else:
        _print(findings)
    context.exit(1 if findings.problems else 0)


def _document(findings: Findings) -> dict[str, Any]:
    return {
        "ok": not findings.problems,
        "errors": [{"file": one.file, "line": one.line, "message": one.text} for one in findings.problems],
        "warnings": [
            {"file": one.file, "line": one.line, "name": one.name, "message": str(one)} for one in findings.unused
        ],
        "settings": None if findings.settings is None else shown_settings(findings.settings),
        "routes": None if findings.routes is None else shown_routes(findings.routes),
    }


def _print(findings: Findings) -> None:
    if findings.settings is not None:
        rows = [
            (name, value, "set" if name in findings.given else "default")
            for name, value in shown_settings(findings.settings).items()
        ]
        print_table(("Setting", "Value", "From"), rows)
    if findings.routes is not None:
        print_table(
            ("Model", "Protocol", "Version", "Weight", "Balancing", "Limit", "Endpoints"),
            [
                (
                    [model.name, *model.aliases],
                    model.protocol,
                    version.name,
                    version.weight,
                    model.balancing,
                    model.max_concurrency,
                    sources_of(version),
                )
                for model in findings.routes.models
                for version in model.versions
            ],
        )
    for unused in findings.unused:
        click.echo(f"warning: {shown(str(unused))}", err=True)
    for problem in findings.problems:
        click.echo(f"error: {shown(problem.text)}", err=True)
    count = len(findings.problems)
    click.echo(f"{count} error{'s' * (count != 1)}" if count else "ok: a router can start with these", err=bool(count))
