"""What a replay says: the log and the replay side by side. All numbers come from whole microseconds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from app.cli.access_log import Logged
from app.cli.quantiles import quantile
from app.cli.simulation import Replayed, is_rejected

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def report(requests: Sequence[Logged], results: Sequence[Replayed]) -> dict[str, Any]:
    """Returns figures of the log and of the replay, under the same names."""
    logged = [_as_result(one) for one in requests]
    return {
        "log": _figures(logged, _surely_inside(logged)),
        "replay": {**_figures(results, _spans(results)), "models": _models(results), "endpoints": _endpoints(results)},
    }


def _as_result(logged: Logged) -> Replayed:
    """Returns what became of a request when it was logged."""
    if logged.rejection:
        result = logged.rejection
    elif logged.client_left:
        result = "client_left"
    elif logged.model_us:
        result = "failed" if logged.failed else "served"
    else:
        result = f"status_{logged.status}"  # rejected, in a log that does not say by what
    return Replayed(logged, result, logged.queue_us, logged.model_us, logged.endpoint)


def _figures(results: Sequence[Replayed], spans: Iterable[tuple[int, int]]) -> dict[str, Any]:
    entered = [one for one in results if one.model_us]
    counts = Counter(one.result for one in results)
    return {
        "requests": len(results),
        "served": counts["served"],
        "failed": counts["failed"],
        "client_left": counts["client_left"],
        "rejected": {name: counts[name] for name in sorted(counts) if name not in ("served", "failed", "client_left")},
        "most_in_flight": _most(spans),
        "queue_ms": _times(one.queue_us for one in entered),
        "total_ms": _times(one.queue_us + one.model_us for one in entered if one.result == "served"),
    }


def _times(times_us: Iterable[int]) -> dict[str, float]:
    ordered = sorted(times_us)
    return {name: quantile(ordered, share) / 1000 for name, share in _SHARES.items()} if ordered else {}


def _models(results: Sequence[Replayed]) -> list[dict[str, Any]]:
    rows = []
    for name in sorted({one.logged.model for one in results}):
        of_model = [one for one in results if one.logged.model == name]
        queue = _times(one.queue_us for one in of_model if one.model_us)
        rows.append(
            {
                "model": name,
                "requests": len(of_model),
                "served": sum(one.result == "served" for one in of_model),
                "rejected": sum(is_rejected(one.result) for one in of_model),
                "queue_p50_ms": queue.get("p50"),
                "queue_p99_ms": queue.get("p99"),
            }
        )
    return rows


def _endpoints(results: Sequence[Replayed]) -> list[dict[str, Any]]:
    rows = []
    begin = min((one.logged.at_us for one in results), default=0)
    end = max((one.logged.at_us + one.queue_us + one.model_us for one in results), default=0)
    for url in sorted({one.endpoint for one in results if one.endpoint}):
        of_endpoint = [one for one in results if one.endpoint == url]
        busy_us = sum(one.model_us for one in of_endpoint)
        rows.append(
            {
                "endpoint": url,
                "requests": len(of_endpoint),
                "failed": sum(one.result == "failed" for one in of_endpoint),
                "most_in_flight": _most(_spans(of_endpoint)),
                "mean_in_flight": round(busy_us / max(1, end - begin), 3),
            }
        )
    return rows


def _surely_inside(results: Iterable[Replayed]) -> list[tuple[int, int]]:
    """Returns from when until when requests of a log were inside the model for certain.

    A line says how long its request took in all, and of that in the queue and in the model. The rest was before the
    queue or after the model, and the line does not say which. So the request entered at the latest such that the rest
    came before, and left at the earliest such that none did. Spans that took all the rest for one of them would
    overlap where requests did not, and show more in flight than the cap.
    """
    spans = []
    for one in results:
        logged = one.logged
        entered = logged.at_us + logged.total_us - one.model_us
        left = logged.at_us + one.queue_us + one.model_us
        if one.model_us and entered < left:
            spans.append((entered, left))
    return spans


def _spans(results: Iterable[Replayed]) -> list[tuple[int, int]]:
    """Returns when requests entered the model and left it."""
    spans = []
    for one in results:
        if not one.model_us:
            continue
        entered = one.logged.at_us + one.queue_us
        spans.append((entered, entered + one.model_us))
    return spans


def _most(spans: Iterable[tuple[int, int]]) -> int:
    """Returns how many of these overlap at most. Where one ends as another begins, they do not."""
    steps = sorted(step for begin, end in spans for step in ((begin, 1), (end, -1)))
    most = now = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most
