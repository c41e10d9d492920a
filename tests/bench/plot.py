"""Bar charts of the benches' tables, as SVG files.

A chart has a panel for each column that the table draws, side by side, and a bar for each row. Every axis begins at 0,
and every bar has its value beside it, so no figure must be guessed. The background belongs to the chart: it is legible
on any page, light or dark, and follows the reader's preference. A text inside says the same as the bars, for programs
that read aloud. The same table always gives the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.bench.table import OURS, Table

LIGHT = {"background": "#ffffff", "text": "#24292f", "grid": "#d0d7de", "bar": "#6e7781", "ours": "#0969da"}
DARK = {"background": "#0d1117", "text": "#e6edf3", "grid": "#30363d", "bar": "#8b949e", "ours": "#58a6ff"}
MARGIN = 16
TOP = 76
"""Above the bars: title, line below it, heads of the panels."""
BOTTOM = 34
ROW = 24
BAR = 14
PANEL = 220
AXIS = 140
"""Of a panel; what is left of it is for the value behind the longest bar."""
LETTER = 7.2
"""Pixels, on average, of a letter that is 12 high. Fonts differ, so this errs on the wide side."""
MOST_STEPS = 3


class Axis(NamedTuple):
    """From 0 to `steps` times `step`."""

    step: float
    steps: int

    @property
    def end(self) -> float:
        """The value at its end."""
        return self.step * self.steps

    def pixels(self, value: float) -> float:
        """How long a bar of this value is."""
        return AXIS * value / self.end


def axis_for(values: Sequence[float]) -> Axis:
    """The shortest axis with round steps, few enough to be labelled, that holds all values."""
    most = max(values, default=0.0)
    if most <= 0:
        return Axis(1, 1)
    size = math.floor(math.log10(most / MOST_STEPS))
    for digit, power in ((digit, power) for power in (size, size + 1) for digit in (1, 2, 5)):
        step = digit * 10.0**power
        steps = math.ceil(most / step - 1e-9)  # a value on the last line is inside, whatever rounding did to it
        if steps <= MOST_STEPS:
            return Axis(step, steps)
    raise AssertionError("ten times the largest power below a third of a value is above a third of it")


def number(cell: str) -> float | None:
    """The number in a cell; None if there is none, or none from 0 on, which has no bar."""
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def write_svg(file: Path | None, *tables: Table) -> None:
    """Draw the first table into this file, and each other into one beside it; without a file, nothing."""
    if file is None:
        return
    for at, table in enumerate(tables, 1):
        beside = file if at == 1 else file.with_stem(f"{file.stem}-{at}")
        beside.write_text(chart(table), encoding="utf-8")


def chart(table: Table) -> str:
    """The whole file."""
    names = MARGIN + round(LETTER * max((len(name) for name, _ in table.rows), default=0)) + 12
    text = LETTER * max(len(table.title) * 15 / 12, len(table.about))
    width = max(names + PANEL * len(table.drawn), round(text) + 2 * MARGIN)
    height = TOP + ROW * len(table.rows) + BOTTOM
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(table.title)}</title>',
        f'<desc id="description">{escape(" ".join(_spoken(table)))}</desc>',
        f"<style>{_style()}</style>",
        f'<rect class="background" width="{width}" height="{height}"/>',
        _text(MARGIN, 26, table.title, "title"),
        _text(MARGIN, 44, table.about),
        *(_text(names - 12, _middle(at) + 4, name, "end") for at, (name, _) in enumerate(table.rows)),
        *(line for at, head in enumerate(table.drawn) for line in _panel(table, head, names + PANEL * at)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(table: Table, head: str, left: int) -> Iterator[str]:
    cells = table.column(head)
    numbers = [number(cell) for cell in cells]
    axis = axis_for([value for value in numbers if value is not None])
    bottom = TOP + ROW * len(cells)
    yield _text(left, TOP - 10, head, "head")
    for step in range(axis.steps + 1):
        x = _short(left + axis.pixels(step * axis.step))
        yield f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}"/>'
        yield _text(x, bottom + 16, _tick(step * axis.step), "middle")
    for at, ((name, _), cell, value) in enumerate(zip(table.rows, cells, numbers, strict=True)):
        length = axis.pixels(value or 0)
        if value is not None:
            kind = "ours" if name.startswith(OURS) else "bar"
            top = _short(_middle(at) - BAR / 2)
            yield f'<rect class="{kind}" x="{left}" y="{top}" width="{_short(length)}" height="{BAR}"/>'
        yield _text(_short(left + length + 5), _middle(at) + 4, cell)


def _spoken(table: Table) -> Iterator[str]:
    """The figures in words."""
    if table.about:
        yield f"{table.about}."
    for head in table.drawn:
        pairs = zip(table.rows, table.column(head), strict=True)
        yield f"{head}: {', '.join(f'{name} {cell}' for (name, _), cell in pairs if cell)}."


def _middle(row: int) -> int:
    return TOP + ROW * row + ROW // 2


def _text(x: float | str, y: int, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{attribute}>{escape(text)}</text>'


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def _short(value: float) -> str:
    return f"{value:.1f}"


def _style() -> str:
    sizes = (
        "text{font:12px system-ui,sans-serif}.title{font-size:15px;font-weight:600}.head{font-weight:600}"
        ".end{text-anchor:end}.middle{text-anchor:middle}"
    )
    return f"{sizes}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"


def _colours(palette: dict[str, str]) -> str:
    fills = "".join(f".{name}{{fill:{palette[name]}}}" for name in ("background", "bar", "ours"))
    return f"{fills}text{{fill:{palette['text']}}}.grid{{stroke:{palette['grid']}}}"
