"""What model servers say of their load is read, whatever else stands beside it, and never believed blindly."""

import pytest

from app.routing.load_formats import MAX_PAGE_BYTES, PageReader, ServerLoad, orca_report

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a b} \\"c{"} 2.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.75
vllm:num_requests_running_total 99
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m"} 5.0
sglang:token_usage{model_name="m"} 0.28 1700000000000
sglang:num_queue_reqs{model_name="m"} 1.0
"""
TRITON = b"""nv_inference_pending_request_count{model="e",version="1"} 1
nv_trt_llm_request_metrics{model="t",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="t",request_type="scheduled",version="1"} 7
nv_trt_llm_request_metrics{model="t",request_type="active",version="1"} 9
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="t",version="1"} 0.5
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="t",version="1"} 4000
"""


def read(*pieces: bytes) -> ServerLoad:
    """What a page in these pieces says."""
    reader = PageReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.report()


@pytest.mark.parametrize(
    ("page", "report"),
    [(VLLM, ServerLoad(2, 7, 0.75)), (SGLANG, ServerLoad(1, 5, 0.28)), (TRITON, ServerLoad(3, 7, 0.5))],
    ids=["vllm", "sglang", "triton"],
)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_pages_of_each_server_are_read(page: bytes, report: ServerLoad, size: int) -> None:
    """However the page is cut: requests of all engines and models are added up, and the fullest cache counts."""
    assert read(*(page[n : n + size] for n in range(0, len(page), size))) == report


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"vllm:num_requests_waiting NaN\n",
        b"vllm:num_requests_waiting -1\n",
        b"vllm:num_requests_waiting +Inf\n",
        b"vllm:num_requests_waiting 1e999\n",
        b"vllm:num_requests_waiting\n",
        b"vllm:num_requests_waiting{ 1\n",
        b'vllm:num_requests_waiting{a="1"}\n',
        b"vllm:num_requests_waiting 12",
        b"vllm:num_requests_waiting_x 1\n",
        b"# vllm:num_requests_waiting 1\n",
        b"\xff\xfe\x00\n" * 100,
        b'nv_trt_llm_request_metrics{request_type="max"} 1\n',
    ],
)
def test_what_is_no_number_of_requests_is_ignored(page: bytes) -> None:
    """A malformed line, a number that no count can be, and a last line that may be half of one say nothing."""
    assert read(page) == ServerLoad()


def test_endless_line_takes_no_memory() -> None:
    """A page without ends of lines is thrown away as it comes; what follows the line counts again."""
    reader = PageReader()
    for _ in range(64):
        reader.feed(b"vllm:num_requests_waiting " * 2000)
        assert len(reader._rest) <= 16 << 10
    reader.feed(b"1\nvllm:num_requests_running 2\n")
    assert reader.report() == ServerLoad(running=2)
    assert MAX_PAGE_BYTES < 1 << 24


def test_huge_numbers_are_bounded() -> None:
    """Nothing that a server says can be too large for a word of shared memory."""
    page = b"vllm:num_requests_waiting 1e300\n" * 3 + b"vllm:kv_cache_usage_perc 50\n"
    assert read(page) == ServerLoad(waiting=1_000_000, cache=1)


@pytest.mark.parametrize(
    ("value", "report"),
    [
        ("TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2", ServerLoad(2, None, 0.4)),
        ("text named_metrics.kv_cache_utilization=0.5,cpu_utilization=0.9", ServerLoad(cache=0.5)),
        ("TEXT cpu_utilization=0.3, mem_utilization=0.8", ServerLoad(cache=0.3)),
        ("TEXT cpu_utilization=0.3, application_utilization=1.5", ServerLoad(cache=1)),
        (
            'JSON {"cpu_utilization":0.3,"named_metrics":{"num_requests_waiting":2,"num_requests_running":1}}',
            ServerLoad(2, 1, 0.3),
        ),
        ('JSON {"application_utilization":null}', None),
        ("BIN CAESBA==", None),
        ("TEXT", None),
        ("", None),
        ("TEXT num_requests_waiting=-1,kv_cache_usage_perc=nan,x", None),
        ("TEXT num_requests_waiting", None),
        ("JSON {", None),
        ('JSON {"named_metrics": [1]}', None),
        ("JSON " + "[" * 4000, None),
        ('JSON "\udcff"', None),
    ],
)
def test_orca_header_is_read_as_text_and_as_json(value: str, report: ServerLoad | None) -> None:
    """Other forms and whatever is malformed are no report."""
    assert orca_report(value) == report
