"""`replay`: what would have become of logged requests under other settings or routes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from app.cli.access_log import LogError, read_log
from app.cli.output import json_option, print_json, print_table
from app.cli.replay_report import report
from app.cli.replay_router import not_modelled, replay_router
from app.cli.simulation import Simulation

_VARIABLES = {"cap": "MAX_CONCURRENCY", "queue_size": "QUEUE_SIZE", "queue_timeout_ms": "QUEUE_TIMEOUT_MS"}


@click.command(epilog="Exits with 0, or 1 if nothing in the log can be replayed, or settings or routes are wrong.")
@click.argument("log", type=click.File("rb"))
@click.option("--routes", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="In place of ROUTES_FILE.")
@click.option("--cap", type=click.IntRange(min=1), metavar="N", help="In place of MAX_CONCURRENCY.")
@click.option("--queue-size", type=click.IntRange(min=0), metavar="N", help="In place of QUEUE_SIZE.")
@click.option("--queue-timeout-ms", type=click.IntRange(min=1), metavar="N", help="In place of QUEUE_TIMEOUT_MS.")
@click.option("--seed", type=int, metavar="N", default=1, show_default=True, help="Of all that is random.")
@json_option
@click.pass_obj
def command(  # noqa: PLR0913, PLR0917  # the options
    environ: dict[str, str],
    log: BinaryIO,
    routes: Path | None,
    cap: int | None,
    queue_size: int | None,
    queue_timeout_ms: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Replay LOG, a JSON access log (ACCESS_LOG=all), on a simulated clock: what if the cap were another one?

    The router's own code admits and balances the requests. The same log, settings and seed give the same result, to the
    bit. Other settings come from the environment. What is assumed: docs/cli.md.
    """
    given = {"cap": cap, "queue_size": queue_size, "queue_timeout_ms": queue_timeout_ms}
    environ = environ | {_VARIABLES[name]: str(value) for name, value in given.items() if value is not None}
    if routes is not None:
        environ["ROUTES_FILE"] = str(routes)
        environ.pop("BACKENDS", None)
    try:
        read = read_log(log)
    except LogError as error:
        raise click.ClickException(str(error)) from error
    with replay_router(environ, read.requests) as router:
        results = Simulation(router, read.requests, seed).run()
        settings = {
            "cap": router.limiter.limit,
            "queue_size": router.settings.queue_size,
            "queue_timeout_ms": router.settings.queue_timeout_ms,
            "seed": seed,
        }
        left_out = not_modelled(router.models.registry.routes)
    figures = report(read.requests, results)
    made = {"settings": settings, "other_lines": read.other_lines, "not_modelled": left_out, **figures}
    if as_json:
        print_json(made)
    else:
        _print(made)


def _print(made: dict[str, Any]) -> None:
    before, after, settings = made["log"], made["replay"], made["settings"]
    names = [name for name in after if name not in ("endpoints", "models")]
    title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    click.echo(title)
    print_table(("", "Log", "Replay"), list(_rows(names, before, after)))
    print_table(
        ("Model", "Requests", "Served", "Rejected", "Queue p50 ms", "Queue p99 ms"),
        [tuple(model.values()) for model in after["models"]],
    )
    if after["endpoints"]:
        print_table(
            ("Endpoint", "Requests", "Failed", "Most in flight", "Mean in flight"),
            [tuple(endpoint.values()) for endpoint in after["endpoints"]],
        )
    click.echo(f"Not modelled: {'; '.join(made['not_modelled'])}. A request takes as long inside its model as it did.")


def _rows(names: Sequence[str], before: dict[str, Any], after: dict[str, Any]) -> list[tuple[object, ...]]:
    """Returns what is compared; what has parts, such as percentiles, in one row for each."""
    rows: list[tuple[object, ...]] = []
    for name in names:
        old, new = before[name], after[name]
        words = name.replace("_", " ")
        if isinstance(new, dict):
            parts = list(dict.fromkeys((*old, *new)))
            rows += [(f"{words}: {part.replace('_', ' ')}", old.get(part, 0), new.get(part, 0)) for part in parts]
        else:
            rows.append((words, old, new))
    return rows
