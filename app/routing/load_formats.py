"""What model servers say of their load: the names of their metrics, and the two forms in which they send them.

- **A page of metrics** in Prometheus' text format, of vLLM, SGLang or Triton with TensorRT-LLM.
- **A response header**, `endpoint-load-metrics`, of ORCA (Open Request Cost Aggregation), as text or as JSON. The
  binary form is ignored.

Whatever is malformed is ignored: a report is a hint, and its absence has a meaning (load_reports.py).
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

ORCA_HEADER = "endpoint-load-metrics"
ORCA_REQUEST = "endpoint-load-metrics-format: TEXT\r\n"
"""The field of a request by which vLLM and Triton are asked for the header."""
MAX_PAGE_BYTES = 4 << 20
"""A page is read up to here. vLLM's has some 100 KiB."""
_MAX_HEADER_CHARACTERS = 4096
_MAX_LINE_BYTES = 16 << 10
_MOST_REQUESTS = 1_000_000.0

_WAITING, _RUNNING, _CACHE = range(3)

PAGE_NAMES: Mapping[bytes, Mapping[bytes, int]] = {
    # vLLM
    b"vllm:num_requests_waiting": {b"": _WAITING},
    b"vllm:num_requests_running": {b"": _RUNNING},
    b"vllm:kv_cache_usage_perc": {b"": _CACHE},
    b"vllm:gpu_cache_usage_perc": {b"": _CACHE},  # before 0.10
    # SGLang
    b"sglang:num_queue_reqs": {b"": _WAITING},
    b"sglang:num_running_reqs": {b"": _RUNNING},
    b"sglang:token_usage": {b"": _CACHE},
    # Triton, and its TensorRT-LLM backend, which has one name for several figures
    b"nv_inference_pending_request_count": {b"": _WAITING},
    b"nv_trt_llm_request_metrics": {b'request_type="waiting"': _WAITING, b'request_type="scheduled"': _RUNNING},
    b"nv_trt_llm_kv_cache_block_metrics": {b'kv_cache_block_type="fraction"': _CACHE},
}
"""The metrics that count, by name and by a label that they must have; "": none."""

ORCA_NAMES: Mapping[str, int] = {
    "num_requests_waiting": _WAITING,  # vLLM
    "num_requests_running": _RUNNING,
    "kv_cache_usage_perc": _CACHE,  # vLLM
    "kv_cache_utilization": _CACHE,  # Triton
}
"""The named metrics of ORCA that count."""
_ORCA_UTILIZATION = ("application_utilization", "cpu_utilization")
"""ORCA's own, which count as the use of the cache where a server reports none."""

_PREFIXES = tuple(PAGE_NAMES)


class ServerLoad(NamedTuple):
    """What a model server says of itself. None: it does not say."""

    waiting: float | None = None
    """Requests that it has not begun."""
    running: float | None = None
    """Requests that it works on."""
    cache: float | None = None
    """The part of its KV cache that is in use, 0 to 1."""


class PageReader:
    """Reads a page of metrics in pieces as they come. Its work is linear in the bytes, and its memory bounded."""

    def __init__(self) -> None:
        self._figures: list[float | None] = [None, None, None]
        self._rest = b""
        self._skips = False
        """Whether the line that has begun is too long to be one of ours."""

    def feed(self, piece: bytes) -> None:
        """Read the lines that are complete."""
        *lines, rest = (self._rest + piece).split(b"\n")
        if lines:
            self._read(lines[1:] if self._skips else lines)
            self._skips = False
        self._skips = self._skips or len(rest) > _MAX_LINE_BYTES
        self._rest = b"" if self._skips else rest

    def report(self) -> ServerLoad:
        """Returns what the page says. A last line without its end does not count: a part of a number is another one."""
        return ServerLoad(*self._figures)

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if line.startswith(_PREFIXES):
                figure, value = _sample(line)
                if value is not None:
                    _take(self._figures, figure, value)


def orca_report(value: str) -> ServerLoad | None:
    """Returns the report of a header's value, or None if there is none in it."""
    form, _, text = value[:_MAX_HEADER_CHARACTERS].partition(" ")
    reader = _ORCA_FORMS.get(form.upper())
    if reader is None:
        return None
    numbers = {name.removeprefix("named_metrics."): number for name, number in reader(text) if _is_valid(number)}
    figures: list[float | None] = [None, None, None]
    for name, number in numbers.items():
        if (figure := ORCA_NAMES.get(name)) is not None:
            _take(figures, figure, number)
    utilization = [numbers[name] for name in _ORCA_UTILIZATION if name in numbers]
    if figures[_CACHE] is None and utilization:
        figures[_CACHE] = min(1.0, utilization[0])
    return None if figures == [None, None, None] else ServerLoad(*figures)


def _pairs_of_text(text: str) -> Iterable[tuple[str, float]]:
    for pair in text.split(","):
        name, _, number = pair.partition("=")
        yield name.strip(), _number(number)


def _pairs_of_json(text: str) -> Iterable[tuple[str, float]]:
    try:
        members = msgspec.json.decode(text, type=dict[str, float | dict[str, float] | None])
    except (msgspec.MsgspecError, UnicodeError):
        return
    for name, member in members.items():
        if isinstance(member, dict):
            yield from member.items()
        elif member is not None:
            yield name, member


_ORCA_FORMS = {"TEXT": _pairs_of_text, "JSON": _pairs_of_json}


def _sample(line: bytes) -> tuple[int, float | None]:
    """Returns which figure a line of a page has, and its value; None if the line has none that counts."""
    name, brace, after = line.partition(b"{")
    labels = b""
    if brace:
        labels, end, rest = after.rpartition(b"}")  # a brace may stand in a label's value, and none behind the labels
        if not end:
            return 0, None
    else:
        name, _, rest = line.partition(b" ")
    figures = PAGE_NAMES.get(name.strip())
    words = rest.split(None, 2)  # a time may follow
    if figures is None or not words:
        return 0, None
    value = _number(words[0].decode("latin-1"))
    for label, figure in figures.items():
        if label in labels and _is_valid(value):
            return figure, value
    return 0, None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_valid(number: float) -> bool:
    return math.isfinite(number) and number >= 0


def _take(figures: list[float | None], figure: int, value: float) -> None:
    """Requests of several models or engines are added up; of several caches, the fullest one counts."""
    before = figures[figure] or 0.0
    figures[figure] = min(1.0, max(before, value)) if figure == _CACHE else min(_MOST_REQUESTS, before + value)
