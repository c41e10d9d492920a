"""The counters and histograms of all workers, summed over their files. A key is parsed once, and not at every scrape.

In a file, every number has a key of some 200 bytes before it: JSON with names, labels and a help text. The numbers of a
series were made together, so they follow one another: a run. The same run is in the files of other workers, at
other places. It is recognised by its first key, and then its numbers are read by one call.

An invariant: a number is added only as what its key says, as it stands in the file at this scrape: the other keys are
compared, too. So nothing is assumed of a file, which may be replaced, emptied, written again or removed at any time.
The runs that no file had any more are dropped after every scrape.
"""

import os
from collections.abc import Iterator, Sequence
from operator import add
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import msgspec
import structlog
from prometheus_client.metrics_core import Metric

from app.observability.metric_series import Sample, Series
from app.observability.turns import Turns

_KINDS = ("counter", "histogram")
_HEAD_BYTES = 8
"""A file begins with the number of bytes that are used, these included."""
_INT = Struct("i")
_NUMBER_BYTES = 16
"""A number and its timestamp, which only gauges have."""
_PIECE_BYTES = 1 << 17
"""So much of a file is read at once, or more if a run is longer."""

_SeriesId = tuple[str, tuple[tuple[str, str], ...]]

_decode_key = msgspec.json.Decoder(tuple[str, str, dict[str, str], str]).decode
_log = structlog.get_logger("router.metrics")


class Run:
    """Numbers of one series that follow one another."""

    __slots__ = ("keys", "layout", "samples", "series")

    def __init__(self, series: Series, keys: list[bytes], samples: list[Sample]) -> None:
        self.series = series
        self.keys = tuple(keys)
        """As a file has them: with their length before them and their padding behind."""
        self.samples = tuple(samples)
        self.layout = Struct("=" + "".join(f"{len(key)}sd8x" for key in keys))


_Found = tuple[Run, tuple[float, ...]]
"""A run in a file, and its numbers."""


class Totals(NamedTuple):
    """What is in all files together.

    A scrape makes few objects that the cyclic garbage collector would track, for its passes are long turns, too.
    """

    numbers: dict[Run, tuple[float, ...]]
    families: dict[str, dict[Series, Run]]
    """The series of a metric, by its name, each with the run that came first."""
    others: dict[Series, list[Run]]
    """Nearly always empty: the other runs of a series, for instance if its worker was killed while it made them."""

    def add(self, run: Run, numbers: tuple[float, ...]) -> None:
        """Add the numbers of a run in one file."""
        before = self.numbers.get(run)
        if before is not None:
            self.numbers[run] = tuple(map(add, before, numbers))
            return
        self.numbers[run] = numbers
        series = run.series
        if self.families.setdefault(series.family.name, {}).setdefault(series, run) is not run:
            self.others.setdefault(series, []).append(run)

    def take(self, series: Series, first: Run) -> Iterator[tuple[Sequence[Sample], Sequence[float]]]:
        """Yields the samples and numbers of a series, for its `text`, and forgets them: to free all is a long turn."""
        for run in (first, *self.others.get(series, ())):
            yield run.samples, self.numbers.pop(run)


class MetricFilesReader:
    """Reads the files of a directory. One scrape at a time may use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs: dict[bytes, Run] = {}
        """By their first key."""
        self._families: dict[str, Metric] = {}
        self._series: dict[_SeriesId, Series] = {}
        self._corrupt: set[str] = set()
        """The files that were reported."""

    def read(self, turns: Turns) -> Totals:
        """Returns the totals, in the order of the files' names and of what is in them."""
        totals = Totals({}, {}, {})
        for name in sorted(os.listdir(self._directory)):
            kind, _, rest = name.partition("_")
            if kind not in _KINDS or not rest.endswith(".db"):
                continue
            try:
                descriptor = os.open(self._directory / name, os.O_RDONLY)
            except FileNotFoundError:  # it was removed after it was listed
                continue
            try:
                for run, numbers in self._runs_in(kind, descriptor):
                    totals.add(run, numbers)
                    turns.pause_if_due()
            except ValueError as error:
                self._report(name, error)
            finally:
                os.close(descriptor)
        self._drop_unused(totals)
        return totals

    def _runs_in(self, kind: str, descriptor: int) -> Iterator[_Found]:
        """Yields the runs of a file, with their numbers. Raises ValueError at what is none.

        A writer appends a number first and then says that more is used, so every number before `used` is whole.
        """
        head = os.pread(descriptor, _INT.size, 0)
        used = _INT.unpack(head)[0] if len(head) == _INT.size else 0  # the file was made just now
        begin, size = _HEAD_BYTES, _PIECE_BYTES
        while begin < used:
            content = os.pread(descriptor, min(size, used - begin), begin)
            is_last = len(content) < size
            at = 0
            while (found := self._known_run(content, at) or self._new_run(content, at, kind, is_last)) is not None:
                yield found
                at += found[0].layout.size
            if not at:
                if is_last:
                    raise ValueError(f"no number begins at byte {begin}")
                size *= 2  # the run is longer than the piece
            begin += at

    def _known_run(self, content: bytes, at: int) -> _Found | None:
        """Returns the run that begins here, and its numbers, if its first key is known and the others agree."""
        run = self._runs.get(_key_at(content, at))
        if run is None or at + run.layout.size > len(content):
            return None
        found = run.layout.unpack_from(content, at)
        return (run, found[1::2]) if found[::2] == run.keys else None

    def _new_run(self, content: bytes, at: int, kind: str, is_last: bool) -> _Found | None:
        """Returns the run that begins here, and its numbers; None if it isn't one, or if the next piece has its end."""
        begin, series = at, None
        keys: list[bytes] = []
        samples: list[Sample] = []
        while key := _key_at(content, at):
            entry = self._entry(key, kind)
            if entry is None or series not in (None, entry[0]):
                break
            series = entry[0]
            keys.append(key)
            samples.append(entry[1])
            at += len(key) + _NUMBER_BYTES
        else:
            if not is_last:
                return None
        if series is None:
            return None
        run = Run(series, keys, samples)
        self._runs.setdefault(keys[0], run)
        return run, run.layout.unpack_from(content, begin)[1::2]

    def _entry(self, key: bytes, kind: str) -> tuple[Series, Sample] | None:
        """Returns what a key says, or None if it says nothing."""
        try:
            metric, name, labels, about = _decode_key(key[_INT.size : _INT.size + _INT.unpack_from(key)[0]])
            bound = float(labels.pop("le")) if kind == "histogram" and "le" in labels else None
            if metric not in self._families:
                self._families[metric] = Metric(metric, about, kind)
        except (ValueError, msgspec.DecodeError):
            return None
        series_id = metric, tuple(sorted(labels.items()))
        if series_id not in self._series:
            self._series[series_id] = Series(self._families[metric], labels)
        return self._series[series_id], name if bound is None else bound

    def _drop_unused(self, totals: Totals) -> None:
        """Forget the runs that are in no file any more."""
        if len(self._runs) <= len(totals.numbers):
            return
        self._runs = {run.keys[0]: run for run in totals.numbers}
        self._series = {key: each for key, each in self._series.items() if each in totals.families.get(key[0], ())}
        self._families = {name: self._families[name] for name in totals.families}

    def _report(self, name: str, error: ValueError) -> None:
        """Log, once, that a file is corrupt. Everything else is shown all the same."""
        if name not in self._corrupt:
            self._corrupt.add(name)
            _log.error(
                "a metrics file is corrupt; what it counts from there on is missing", file=name, reason=str(error)
            )


def _key_at(content: bytes, at: int) -> bytes:
    """Returns the key that begins here, or nothing if it or its number is not whole."""
    text = at + _INT.size
    if text > len(content):
        return b""
    length: int = _INT.unpack_from(content, at)[0]
    end = text + length + 8 - (_INT.size + length) % 8  # padded so that the number is aligned
    return content[at:end] if length > 0 and end + _NUMBER_BYTES <= len(content) else b""
