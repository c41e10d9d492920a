"""What the tables of the benches are made of: rows, and the figures that compare rounds."""

import statistics
from collections.abc import Sequence


def print_cells(name: str, *cells: object, first: int = 24, width: int = 12) -> None:
    """A row of a table, the name left and the cells right; `first` is the width of the name's column."""
    print(f"{name:<{first}}" + "".join(f"{cell!s:>{width}}" for cell in cells), flush=True)


def ratio(values: Sequence[float], yardsticks: Sequence[float]) -> str:
    """The median of the rounds' ratios: the machine's speed may change between rounds, less so within one."""
    ratios = [value / yardstick for value, yardstick in zip(values, yardsticks, strict=True) if yardstick]
    return f"{statistics.median(ratios):.2f}" if ratios and any(values) else ""


def difference(values: Sequence[float], yardsticks: Sequence[float]) -> str:
    """The median of the rounds' differences."""
    return f"{statistics.median(a - b for a, b in zip(values, yardsticks, strict=True)):+.1f}"
