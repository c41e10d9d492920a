"""Quantiles and histograms of times that were measured."""

from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple, TypeVar

N = TypeVar("N", int, float)


def quantile(ordered: Sequence[N], share: float) -> N:
    """Returns the smallest value that this share of the values does not exceed (the nearest rank)."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


class Bin(NamedTuple):
    """A range of values, and how many lie in it."""

    low: float
    high: float
    number: int


def histogram(ordered: Sequence[float], most: int = 16) -> list[Bin]:
    """Returns at most so many bins of equal ratio, from the first to the last that holds a value.

    Times differ by ratios, so that bins of equal width would put nearly all of them into one. The largest one of a
    thousand values is cut off into the last bin.
    """
    least = max(ordered[0], 1e-9)
    top = max(quantile(ordered, 0.999), least * 1.01)
    ratio = (top / least) ** (1 / most)
    counts = [0] * most
    for value in ordered:
        at = int(log(max(value, least) / least) / log(ratio))
        counts[min(most - 1, at)] += 1
    bins = [Bin(least * ratio**at, least * ratio ** (at + 1), count) for at, count in enumerate(counts)]
    bins[-1] = bins[-1]._replace(high=max(bins[-1].high, ordered[-1]))
    return bins
