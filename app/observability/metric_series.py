"""A series of a counter or histogram: the samples that share their labels, but for `le`."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.metrics_core import Metric

from app.observability.metric_text import Format, Lines

Sample: TypeAlias = str | float
"""What distinguishes a number from the others of its series: a name, or the upper bound of a bucket."""


class Series:
    """Its lines are made when it is first written, and again when it has other samples."""

    __slots__ = ("_bounds", "_lines", "_names", "_samples", "family", "labels")

    def __init__(self, family: Metric, labels: dict[str, str]) -> None:
        """`family` has no samples."""
        self.family = family
        self.labels = labels
        self._samples: tuple[Sample, ...] = ()
        self._names: tuple[str, ...] = ()
        self._bounds: tuple[float, ...] = ()
        self._lines: Lines

    def text(self, form: Format, parts: Iterable[tuple[Sequence[Sample], Sequence[float]]]) -> bytes:
        """Returns its lines. The numbers of a sample are added, whichever part they are in.

        A bucket is written with what is in those below it, and `_count` with what is in all.
        """
        totals: dict[Sample, float] = {}
        for samples, numbers in parts:
            for sample, number in zip(samples, numbers, strict=True):
                totals[sample] = totals.get(sample, 0.0) + number
        if self._samples != tuple(totals):
            self._arrange(tuple(totals))
        written = [totals[name] for name in self._names]
        if self._bounds:
            written += accumulate([totals[bound] for bound in self._bounds])
            written.append(written[-1])
        return self._lines.text(form, written)

    def _arrange(self, samples: tuple[Sample, ...]) -> None:
        self._samples = samples
        self._names = tuple(sample for sample in samples if isinstance(sample, str))
        self._bounds = tuple(sorted(sample for sample in samples if isinstance(sample, float)))
        self._lines = Lines(self.family, self.labels, self._names, self._bounds)
