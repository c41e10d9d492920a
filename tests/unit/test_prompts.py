"""Which part of a request is its prompt, at each path: what policies compare that keep equal prompts together."""

import msgspec
import pytest

from app.config.base_urls import without_roots
from app.config.route_schema import Endpoint, Model, Routes, Version
from app.errors import InvalidRequest
from app.protocols import openai, v2
from app.protocols.adapters import PROTOCOLS
from app.protocols.interfaces import ClientRequest, Operation

OPERATIONS = {operation.route: operation for adapter in PROTOCOLS for operation in adapter.operations}
LISTED = openai.operation("/v1/custom")


def prompt_of(operation: Operation, body: bytes, **headers: str) -> list[bytes]:
    """The parts of the prompt in this body."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    request = ClientRequest(operation, {"name": "m"}, "", lambda name: named.get(name.lower()), body)
    return [bytes(part) for part in operation.parse(request).prompt()]


@pytest.mark.parametrize(
    ("path", "members", "prompt"),
    [
        ("/v1/chat/completions", {"messages": [1]}, ["[1]"]),
        ("/v1/completions", {"prompt": "a"}, ['"a"']),
        ("/v1/embeddings", {"input": ["a"]}, ['["a"]']),
        ("/v1/moderations", {"input": "a"}, ['"a"']),
        ("/v1/images/generations", {"prompt": "a", "input": "b"}, ['"a"']),
        ("/v1/audio/speech", {"input": "a", "voice": "b"}, ['"a"']),
        *(
            (path, {"documents": ["b"], "query": "a"}, ['"a"', '["b"]'])
            for path in ("/v1/rerank", "/rerank", "/v2/rerank")
        ),
        *((path, {"text_1": "a", "text_2": ["b"]}, ['"a"', '["b"]']) for path in ("/v1/score", "/score")),
        ("/v1/score", {"query": "a", "items": ["b"]}, ['"a"', '["b"]']),
        ("/score", {"queries": "a", "documents": ["b"]}, ['"a"', '["b"]']),
        ("/v1/classify", {"input": "a"}, ['"a"']),
        ("/v1/classify", {"text": "a"}, ['"a"']),
        ("/pooling", {"messages": ["a"]}, ['["a"]']),
        ("/tokenize", {"prompt": "a"}, ['"a"']),
        ("/detokenize", {"tokens": [1]}, ["[1]"]),
        ("/v1/messages", {"messages": ["a"], "tools": ["b"], "system": "c"}, ['"c"', '["a"]']),
        ("/v1/messages/count_tokens", {"messages": ["a"]}, ['["a"]']),
        ("/v2/models/{name}/generate", {"text_input": "a", "parameters": {}}, ['"a"']),
        ("/v2/models/{name}/generate_stream", {"text_input": "a"}, ['"a"']),
        ("/v2/models/{name}/generate", {"image": "a"}, []),
        ("/v2/models/{name}/infer", {"inputs": [1]}, ["[1]"]),
    ],
)
def test_prompt_is_what_the_model_reads_first(path: str, members: dict[str, object], prompt: list[str]) -> None:
    """Equal prompts have equal parts, in the order in which models read them, wherever they stand in the body."""
    for given in (members, dict(reversed(members.items()))):
        body = msgspec.json.encode({"model": "m", **given, "other": 1})
        assert prompt_of(OPERATIONS[path], body) == [part.encode() for part in prompt]


def test_every_path_with_a_body_has_a_prompt() -> None:
    """A path that is added says what its prompt is, and a listed path takes any of the usual members."""
    assert all(openai.PATHS.values())
    for member in ("messages", "prompt", "input"):
        assert prompt_of(LISTED, msgspec.json.encode({member: "a"})) == [b'"a"']
    assert prompt_of(LISTED, b"{}") == []


def test_what_only_the_server_can_read_has_no_prompt() -> None:
    """A compressed body under /v2 passes unread, and one that is not JSON is refused."""
    generate = v2.ADAPTER.operations[1]
    assert prompt_of(generate, b"\x1f\x8b", Content_Encoding="gzip") == []
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        prompt_of(generate, b"\x1f\x8b")


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("http://h/v1/messages", "http://h"),
        ("http://h/x/v1/messages/count_tokens", "http://h/x"),
        ("http://h/v1/rerank", "http://h"),
        ("http://h/score", "http://h/score"),
        ("http://h/x/tokenize", "http://h/x/tokenize"),
        ("http://h/v2/rerank", "http://h/v2/rerank"),
    ],
)
def test_only_the_root_of_the_protocol_is_left_out_of_a_url(url: str, left: str) -> None:
    """A URL may end with an operation below /v1; another ending may be a folder of that name, and stays."""
    routes = Routes(models=(Model(name="m", versions=(Version(endpoints=(Endpoint(url=url),)),)),))
    assert without_roots(routes).models[0].versions[0].endpoints[0].url == left
