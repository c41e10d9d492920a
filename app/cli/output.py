"""What commands print: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO, TypeVar

import click
import msgspec

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""
NO_ROUTER = "1 if no router can be reached, or it refuses the request"
_WIDTH_OF_FILES = 10_000
"""Columns where standard output is no terminal: a row is one line there, for `grep` and the like."""
_NOTHING = "–"  # noqa: RUF001  # an en dash, as in printed tables


def json_option(function: F) -> F:
    """Give a command the option `--json`, its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Print one JSON document, in lines for people to read too."""
    click.echo(msgspec.json.format(_encoded(value), indent=2))


def print_json_line(value: object) -> None:
    """Print one JSON document in one line, at once."""
    click.echo(_encoded(value))
    sys.stdout.flush()


def _encoded(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a variable of the environment, or a file's name, that is not UTF-8: it is escaped
        return json.dumps(msgspec.to_builtins(value)).encode()


def console(*, stderr: bool = False) -> Any:
    """Returns rich's console for standard output, or for standard error."""
    from rich.console import Console  # noqa: PLC0415  # takes longer to import than most commands run

    stream = _stream(stderr=stderr)
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_FILES, highlight=False)


def moves_cursor(*, stderr: bool = False) -> bool:
    """Whether standard output, or standard error, is a terminal on which what was printed can be replaced.

    Without a look at FORCE_COLOR, which stands for colours in a log, and not for progress bars there.
    """
    return _stream(stderr=stderr).isatty() and not console(stderr=stderr).is_dumb_terminal


def _stream(*, stderr: bool) -> TextIO:
    return sys.stderr if stderr else sys.stdout


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Returns a table of rich's, or, where it would break words to fit, the same cells one below the other.

    Numbers stand to the right, and nothing in a cell is taken for markup.
    """
    from rich import box  # noqa: PLC0415  # see above
    from rich.measure import Measurement  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    written = [list(row) for row in rows]
    for at, name in enumerate(columns):
        numbers = all(isinstance(row[at], int | float) or row[at] is None for row in written)
        made.add_column(name, justify="right" if numbers and written else "left", overflow="fold")
    for row in written:
        made.add_row(*(Text(shown(cell)) for cell in row))
    terminal = console()
    least = Measurement.get(terminal, terminal.options.update(max_width=_WIDTH_OF_FILES), made).minimum
    return made if least <= terminal.width else _below_each_other(columns, written)


def _below_each_other(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Returns the rows as paragraphs: a line for each cell, with its column's name before it."""
    from rich.text import Text  # noqa: PLC0415  # see above

    made = Text(overflow="fold")
    for row in rows:
        for name, cell in zip(columns, row, strict=True):
            made.append(f"\n{name}: " if name else "\n", "bold").append(shown(cell).strip())
        made.append("\n")
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
