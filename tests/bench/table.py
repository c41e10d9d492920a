"""What the tables of the benches are made of: rows, and the figures that compare rounds."""

import statistics
from collections.abc import Sequence

OURS = "ours"
"""Our router's name in tables."""


class Table:
    """Rows under heads. A row is printed when it is added; plot.py draws the columns that `drawn` names."""

    def __init__(
        self,
        title: str,
        *heads: str,
        drawn: Sequence[str],
        about: str = "",
        corner: str = "",
        first: int = 24,
        width: int = 12,
    ) -> None:
        self.title = title
        self.about = about
        """What holds for all rows: the load, the rounds."""
        self.heads = heads
        self.drawn = drawn
        self.rows: list[tuple[str, tuple[str, ...]]] = []
        self._corner = corner
        self._first = first
        self._width = width

    def add(self, name: str, *cells: object) -> None:
        """Print a row, below the heads if it is the first one, and keep it."""
        if len(cells) != len(self.heads):
            raise ValueError(f"{name}: {len(cells)} cells under {len(self.heads)} heads")
        if not self.rows:
            print_cells(self._corner, *self.heads, first=self._first, width=self._width)
        print_cells(name, *cells, first=self._first, width=self._width)
        self.rows.append((name, tuple(map(str, cells))))

    def column(self, head: str) -> list[str]:
        """The cells under the first head of this name."""
        at = self.heads.index(head)
        return [cells[at] for _, cells in self.rows]


def print_cells(name: str, *cells: object, first: int = 24, width: int = 12) -> None:
    """A row of a table, the name left and the cells right; `first` is the width of the name's column."""
    print(f"{name:<{first}}" + "".join(f"{cell!s:>{width}}" for cell in cells), flush=True)


def ratio(values: Sequence[float], yardsticks: Sequence[float]) -> str:
    """The median of the rounds' ratios: the machine's speed may change between rounds, less so within one."""
    found = ratios(values, yardsticks)
    return f"{statistics.median(found):.2f}" if found and any(values) else ""


def ratios(values: Sequence[float], yardsticks: Sequence[float]) -> list[float]:
    """The ratio of each round, without the rounds whose yardstick is 0."""
    return [value / yardstick for value, yardstick in zip(values, yardsticks, strict=True) if yardstick]


def difference(values: Sequence[float], yardsticks: Sequence[float]) -> str:
    """The median of the rounds' differences."""
    return f"{statistics.median(a - b for a, b in zip(values, yardsticks, strict=True)):+.1f}"
