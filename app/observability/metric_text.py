"""Metrics as text: prometheus-client writes the lines of a metric once, and pages put labels and numbers in.

Nearly all of a page stays as it is: names, help texts, labels. The library's encoder writes the lines of a metric once,
with marks for what varies. That is the metric's pattern. With the values of the labels it becomes the template of a
series, which is kept, and with the numbers it becomes lines. So every difference between the formats is the library's,
and the page is the same byte for byte.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_KEPT_FORMATS = 2
"""The scrapers of a server use one or two. A client may name any version, and so there is no end of content types."""

_number = lru_cache(maxsize=1 << 10)(floatToGoString)  # most numbers are counts that many lines share


class Shape(NamedTuple):
    """What lines a series has: one for each name, and then one for each bucket and one for `_count`."""

    labels: tuple[str, ...]
    names: tuple[str, ...]
    bounds: tuple[float, ...] = ()


class Format(NamedTuple):
    """How a page is written."""

    encode: Callable[[Collector], bytes]
    content_type: str
    patterns: dict[tuple[str, Shape], str]

    def head(self, family: Metric) -> bytes:
        """Returns the lines before the samples of a metric. `family` has no samples."""
        return self.encode(_Page([family])).removesuffix(self.end())

    def end(self) -> bytes:
        """Returns the last line of the page, if the format has one."""
        return self.encode(_Page([]))

    def pattern(self, family: Metric, shape: Shape) -> str:
        """Returns lines with `%(name)s` for the value of each label and `%%s` for each number."""
        pattern = self.patterns.get((family.name, shape))
        if pattern is None:
            pattern = self.patterns[family.name, shape] = self._make_pattern(family, shape)
        return pattern

    def _make_pattern(self, family: Metric, shape: Shape) -> str:
        marks = {name: f"\0{name}\0" for name in shape.labels}  # no encoder changes these characters
        filled = Metric(family.name, family.documentation, family.type)
        for name in shape.names:
            filled.add_sample(name, marks, 0.0)
        for bound in shape.bounds:
            filled.add_sample(f"{family.name}_bucket", {**marks, "le": floatToGoString(bound)}, 0.0)
        if shape.bounds:
            filled.add_sample(f"{family.name}_count", marks, 0.0)
        lines = self.encode(_Page([filled])).decode().splitlines()
        text = "".join(f"{line.rpartition(' ')[0]} %%s\n" for line in lines if not line.startswith("#"))
        for name, mark in marks.items():
            text = text.replace(mark, f"%({name})s")
        return text


@lru_cache(maxsize=2 * _KEPT_FORMATS)
def accepted_format(accept: str) -> Format:
    """Returns OpenMetrics if `accept` prefers it, else text."""
    try:
        return Format(*choose_encoder(accept), {})
    except (TypeError, ValueError):  # `accept` names an invalid version: the plain format is always acceptable
        return Format(*choose_encoder(""), {})


class Lines:
    """The lines of a series."""

    __slots__ = ("_family", "_shape", "_templates", "_values")

    def __init__(
        self, family: Metric, labels: Mapping[str, str], names: Sequence[str], bounds: Sequence[float] = ()
    ) -> None:
        """`family` has no samples. `names` and `bounds` are those of `Shape`."""
        self._family = family
        self._shape = Shape(tuple(labels), tuple(names), tuple(bounds))
        self._values = tuple(labels.values())
        self._templates: dict[str, str] = {}

    def text(self, form: Format, numbers: Iterable[float]) -> bytes:
        """Returns the lines with these numbers."""
        template = self._templates.get(form.content_type) or self._make_template(form)
        return (template % tuple(map(_number, numbers))).encode()

    def _make_template(self, form: Format) -> str:
        if len(self._templates) >= _KEPT_FORMATS:
            self._templates.clear()
        values = map(_escape, self._values)
        template = form.pattern(self._family, self._shape) % dict(zip(self._shape.labels, values, strict=True))
        self._templates[form.content_type] = template
        return template


def _escape(value: str) -> str:
    """Returns the value of a label as both formats write it, and as the template of a `%` wants it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"").replace("%", "%%")


class _Page(Collector):
    """What an encoder reads."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
