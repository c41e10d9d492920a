"""How a metric is described, and what counts in it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric

from app.observability.metric_cells import Count, Distribution


class Family(NamedTuple):
    """A metric as the page and docs/metrics.md show it."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    about: str
    labels: tuple[str, ...] = ()


def metric_of(family: Family) -> Metric:
    """Returns the library's description, without samples."""
    name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    return Metric(name, family.about, family.kind)


def histogram(family: Family, buckets: Sequence[float]) -> Histogram:
    """Returns the library's histogram, which is on no page of its own: the page reads the files of all workers."""
    return Histogram(family.name, family.about, family.labels, buckets=buckets, registry=CollectorRegistry())


def counts(family: Family) -> Callable[..., Count]:
    """Returns a function from the labels' values to their counter."""
    counter = _counter(family)
    # prometheus-client looks a child up at every `labels` call; there are few, so they are kept.
    return lru_cache(maxsize=4096)(lambda *labels: Count(counter.labels(*labels)))


def distributions(family: Family, buckets: Sequence[float]) -> Callable[..., Distribution]:
    """Returns a function from the labels' values to their histogram."""
    made = histogram(family, buckets)
    return lru_cache(maxsize=4096)(lambda *labels: Distribution(made.labels(*labels)))


def counts_of(family: Family, label_values: Sequence[str]) -> dict[str, Count]:
    """Returns the counters of a label whose values are all known, so that each is on the page from the start."""
    counter = _counter(family)
    return {value: Count(counter.labels(value)) for value in label_values}


def _counter(family: Family) -> Counter:
    return Counter(family.name, family.about, family.labels, registry=CollectorRegistry())
