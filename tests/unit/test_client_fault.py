"""Which error responses say that the request is at fault."""

import gzip
import json
import time
import zlib
from collections.abc import Callable

import pytest

from app.config.context_errors import CONTEXT_TOO_LONG
from app.routing.client_fault import MOST_BYTES, is_clients_fault

TEXT = "the prompt is too long"
BODY = json.dumps({"error": TEXT.title()}).encode()


def raw_deflate(data: bytes) -> bytes:
    """Deflate without the header and the checksum of zlib."""
    return zlib.compress(data, wbits=-15)


def found(body: bytes, coding: str | None = None, *texts: str) -> bool:
    """Whether the body says so, with this Content-Encoding."""
    headers = [("content-type", "application/json")] + ([] if coding is None else [("content-encoding", coding)])
    return is_clients_fault(headers, body, texts or (TEXT,))


# What servers said, as people reported it. route_schema.py has the name of the server beside each text.
SAID = [
    "This model's maximum context length is 4096 tokens. However, you requested 4472 tokens.",
    "The decoder prompt (length 66501) is longer than the maximum model length of 65536.",
    "The prompt (total length 25938) is too long to fit into the model (context length 4096).",
    "You passed 1193 input tokens. However, the model's context length is only 8192 tokens.",
    "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
    "Requested token count exceeds the model's maximum context length of 202752 tokens.",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "Requested tokens (2285) exceed context window of 2048",
    "the input length exceeds the context length",
    "input length exceeds maximum context length",
    "Encountered an error when fetching new request: Prompt length (200) exceeds maximum input length (1)",
    "Cannot process new request: Prompt length (5056) exceeds maximum sequence length (2048)",
    "The sum of prompt length (72417.0), query length (0) should not exceed max_num_tokens (69632)",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` tokens",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168",
]


@pytest.mark.parametrize("said", SAID)
def test_what_servers_say_of_long_prompts_is_known(said: str) -> None:
    """The defaults have vLLM, SGLang, llama.cpp, Ollama, TensorRT-LLM and TGI; some escape the apostrophe."""
    body = json.dumps({"error": {"message": said, "code": 500}}).encode()
    assert found(body, None, *CONTEXT_TOO_LONG)
    assert found(body.replace(b"'", rb"\u0027"), None, *CONTEXT_TOO_LONG)


@pytest.mark.parametrize("said", ["CUDA out of memory", "Internal Server Error", "model is loading", ""])
def test_faults_of_the_server_are_not_the_clients(said: str) -> None:
    """None of the defaults is in them."""
    assert not found(said.encode(), None, *CONTEXT_TOO_LONG)


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        (" GZIP ", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_compressed_text_is_read(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """gzip, and deflate with and without its header; whole or cut anywhere behind the text."""
    body = compress(BODY)
    assert found(body, coding)
    assert not found(compress(b"no"), coding)
    if compress is not bytes:
        assert found(compress(BODY + bytes(range(256)) * 400)[:-20], coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "compress", "gzip, gzip", "x", "identity, gzip"])
@pytest.mark.parametrize(
    "body", [BODY, b"\x1f\x8b", b"\x1f\x8b\x08" + BODY, zlib.compress(BODY)[:1] + BODY, b"\xff" * 99, b""]
)
def test_what_cannot_be_decompressed_says_nothing(coding: str, body: bytes) -> None:
    """Wrong data, no data, and codings that are not known: not recognised, and no exception."""
    assert not found(body, coding)


def test_several_fields_are_several_codings() -> None:
    """A list may come in several fields."""
    headers = [("content-encoding", "gzip"), ("content-encoding", "gzip")]
    assert not is_clients_fault(headers, gzip.compress(BODY), (TEXT,))


@pytest.mark.slow
@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("", bytes)])
def test_no_more_than_64_kib_is_searched(coding: str, compress: Callable[[bytes], bytes]) -> None:
    """Before and after decompressing: a bomb costs what any other body does."""
    assert found(compress(b" " * (MOST_BYTES - len(BODY)) + BODY), coding)
    assert not found(compress(b" " * MOST_BYTES + BODY), coding)
    bomb = compress(bytes(64 << 20))
    began = time.process_time()
    assert not found(bomb, coding)
    assert time.process_time() - began < 1


def test_text_is_found_whatever_its_case_and_escapes() -> None:
    """A text may be listed as people read it, or as it is sent."""
    body = json.dumps({"error": 'Zu GRO\u00dfe "Anfrage"'}).encode()
    for text in ("zu gro\u00dfe", "ZU GROSSE", r"zu gro\u00dfe", r"\"anfrage\""):
        assert found(body, None, text), text
    assert not is_clients_fault([], body, ())
