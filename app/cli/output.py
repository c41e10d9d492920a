"""What commands print: tables for people, JSON for programs."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])

_WIDTH_OF_FILES = 200
"""Columns where standard output is no terminal, so that a line is not cut there."""
_NOTHING = "–"  # noqa: RUF001  # an en dash, as in printed tables


def json_option(function: F) -> F:
    """Give a command the option `--json`, its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Print one JSON document, in lines for people to read too."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: object) -> None:
    """Print one JSON document in one line, at once."""
    click.echo(msgspec.json.encode(value))
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Any:
    """Returns rich's console for standard output, or for standard error."""
    from rich.console import Console  # noqa: PLC0415  # takes longer to import than most commands run

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_FILES, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Returns a table of rich's. Numbers stand to the right, and nothing in a cell is taken for markup."""
    from rich import box  # noqa: PLC0415  # see above
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    written = [list(row) for row in rows]
    for at, name in enumerate(columns):
        numbers = all(isinstance(row[at], int | float) or row[at] is None for row in written)
        made.add_column(name, justify="right" if numbers and written else "left", overflow="fold")
    for row in written:
        made.add_row(*(Text(shown(cell)) for cell in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    console().print(table(columns, rows))


def shown(value: object) -> str:
    """Returns the text of a cell, without characters that a terminal would obey: clients choose some of the texts."""
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or _NOTHING
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(value))
