"""Examples in the OpenAPI document: a request that works with any model server of the protocol, and its response.

The responses are shortened to what every model server of the protocol sends.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

MODEL = "llama"
_CHAT = [{"role": "user", "content": "Hello"}]
_TENSOR = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["Hello"]}


class Example(NamedTuple):
    """Of one operation."""

    summary: str
    request: dict[str, Any]
    response: dict[str, Any] | None = None
    """None: the response is a stream always."""
    stream: str = ""
    """Beginning of the response with `"stream": true`, if there is one."""


EXAMPLES: Mapping[str, Example] = {
    "/infer": Example(
        "One prompt, one response, whatever the protocol of the model server.",
        {"model": MODEL, "prompt": "Hello"},
        {"modelRef": MODEL, "prompt": "Hello", "routerPod": "router-0", "kvEndpoints": [], "processingMs": 100},
    ),
    "/v1/chat/completions": Example(
        "A chat, as OpenAI's API has it.",
        {"model": MODEL, "messages": _CHAT},
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        },
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"llama",'
        '"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}\n\ndata: [DONE]\n\n',
    ),
    "/v1/completions": Example(
        "The completion of a text, as OpenAI's API has it.",
        {"model": MODEL, "prompt": "Hello"},
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": MODEL,
            "choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        },
        'data: {"id":"cmpl-1","object":"text_completion","model":"llama",'
        '"choices":[{"index":0,"text":"Hello","finish_reason":null}]}\n\ndata: [DONE]\n\n',
    ),
    "/v1/responses": Example(
        "A response that later requests may refer to, as OpenAI's API has it.",
        {"model": MODEL, "input": "Hello"},
        {"id": "resp_1", "object": "response", "status": "completed", "model": MODEL, "output": []},
        'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1"}}\n\n',
    ),
    "/v1/messages": Example(
        "A chat, as Anthropic's API has it.",
        {"model": MODEL, "max_tokens": 100, "messages": _CHAT},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [{"type": "text", "text": "Hello"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        },
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hello"}}\n\n',
    ),
    "/v1/embeddings": Example(
        "The embeddings of texts, as OpenAI's API has them.",
        {"model": MODEL, "input": "Hello"},
        {
            "object": "list",
            "model": MODEL,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        },
    ),
    "/v1/rerank": Example(
        "Documents in the order of their relevance, as vLLM and SGLang have it.",
        {"model": MODEL, "query": "Hello", "documents": ["Hello", "Goodbye"]},
        {"model": MODEL, "results": [{"index": 0, "relevance_score": 0.9}, {"index": 1, "relevance_score": 0.1}]},
    ),
    "/v2/models/{name}/infer": Example(
        "Tensors, as Open Inference Protocol v2 has them.",
        {"inputs": [_TENSOR]},
        {"model_name": MODEL, "outputs": [_TENSOR]},
    ),
    "/v2/models/{name}/generate": Example(
        "A text, as Triton's generate extension has it.",
        {"text_input": "Hello"},
        {"model_name": MODEL, "text_output": "Hello"},
    ),
    "/v2/models/{name}/generate_stream": Example(
        "A text as a stream of events, as Triton's generate extension has it.",
        {"text_input": "Hello"},
        None,
        'data: {"model_name":"llama","text_output":"Hello"}\n\n',
    ),
}
"""By their URI templates."""

_OF_FORMS = {
    "/v1/audio/transcriptions": "The text of a recording, as OpenAI's API has it.",
    "/v1/audio/translations": "The English text of a recording, as OpenAI's API has it.",
    "/v1/images/edits": "A picture that is made of others, as OpenAI's API has it.",
}


def summary_of(template: str) -> str | None:
    """Returns what an operation is for, if it is known better than by its path."""
    example = EXAMPLES.get(template)
    return example.summary if example else _OF_FORMS.get(template)


def success(template: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the content of a successful response. `schema`: the router makes it, so that it has no other type."""
    example = EXAMPLES.get(template)
    content: dict[str, Any] = {}
    if schema is not None:
        content["application/json"] = {"schema": schema}
    if example and example.response is not None:
        content.setdefault("application/json", {})["example"] = example.response
    if example and example.stream:
        content["text/event-stream"] = {"example": example.stream}
    return content if schema is not None else {**content, "*/*": {}}


def streams_on_demand(template: str) -> bool:
    """Whether the member `stream` of a request asks for a stream."""
    example = EXAMPLES.get(template)
    return example is not None and bool(example.stream) and example.response is not None
