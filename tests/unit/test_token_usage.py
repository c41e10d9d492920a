"""The tokens of JSON bodies, as model servers write them."""

import pytest

from app.protocols.token_usage import NOTHING, TAIL_BYTES, TokenUsage, usage_at_end

CHAT = b'{"id":"1","object":"chat.completion","choices":[{"message":{"role":"assistant","content":"%b"}}],%b}'
USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":5}'
BODIES = {
    "vllm chat": (
        CHAT
        % (
            b"Hi",
            (
                b'"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5,"prompt_tokens_details":'
                b'null},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null'
            ),
        ),
        TokenUsage(9, 5),
    ),
    "openai chat": (
        CHAT
        % (
            b"Hi",
            (
                b'"usage": {\n "prompt_tokens": 19,\n "completion_tokens": 10,\n "prompt_tokens_details": {\n'
                b'"cached_tokens": 8, "audio_tokens": 0\n},"completion_tokens_details": {"reasoning_tokens": 6}\n},\n'
                b'"service_tier": "default"\n'
            ),
        ),
        TokenUsage(19, 10, 8, 6),
    ),
    "embeddings": (
        (
            b'{"object":"list","data":[{"object":"embedding","embedding":[0.1]}],"model":"m","usage":{"prompt_tokens":8,'
            b'"total_tokens":8}}'
        ),
        TokenUsage(8),
    ),
    "rerank": (b'{"id":"r","usage":{"total_tokens":56},"results":[{"index":0,"relevance_score":0.9}]}', TokenUsage(56)),
    "responses": (
        (
            b'{"id":"resp_1","output":[],"tools":[{"name":"f","parameters":{"properties":{"usage":{"type":"object"}}}}],'
            b'"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":1},"output_tokens":87,'
            b'"output_tokens_details":{"reasoning_tokens":2},"total_tokens":123},"user":null,"metadata":{}}'
        ),
        TokenUsage(36, 87, 1, 2),
    ),
    "messages": (
        (
            b'{"id":"msg_1","type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":1}}}],'
            b'"usage":{"input_tokens":10,"cache_creation_input_tokens":3,"cache_read_input_tokens":7,"output_tokens":20}}'
        ),
        TokenUsage(20, 20, 7),
    ),
    "schema of a tool behind it": (
        b'{"usage":{"input_tokens":1,"output_tokens":2},"tools":[{"properties":{"usage":{"type":"object"}}}]}',
        TokenUsage(1, 2),
    ),
    "seconds of audio": (b'{"text":"Hi","usage":{"type":"duration","seconds":3.5}}', NOTHING),
    "a text about usage": (CHAT % (b'\\"usage\\":{\\"prompt_tokens\\":1}', b'"usage":null'), NOTHING),
    "a text that ends in usage": (CHAT % (b'say \\"usage', b'"x":{"prompt_tokens":3}'), NOTHING),
    "nothing": (b"{}", NOTHING),
    "no JSON": (b'"usage"', NOTHING),
    "no numbers": (b'{"usage":{"prompt_tokens":"9","completion_tokens":-1}}', NOTHING),
    "an enormous number": (b'{"usage":{"prompt_tokens":9e99,"completion_tokens":99999999999999999999}}', NOTHING),
    "cut": (b'{"usage":{"prompt_tokens":9', NOTHING),
    "no UTF-8 in it": (b'{"id":"1","usage":{"prompt_tokens":9,"x":"\xff"}}', NOTHING),
    "no UTF-8 in a name, deeper": (b'[{"usage":{"prompt_tokens":9,"\xff":1}}]', NOTHING),
    "no UTF-8 beside it": (b'{"id":"\xff","usage":{"prompt_tokens":9,"x":{"y":1}},"z":"\xff"}', TokenUsage(9)),
}


@pytest.mark.parametrize(("body", "usage"), BODIES.values(), ids=BODIES)
def test_usage_is_read_as_servers_write_it(body: bytes, usage: TokenUsage) -> None:
    """The member of the response counts, and nothing that a model wrote or a client sent looks like it."""
    assert usage_at_end(body) == usage


def test_only_the_end_of_a_body_is_read() -> None:
    """Megabytes of embeddings cost no more than their last bytes; what lies further ahead is not found."""
    assert usage_at_end(b'{"data":[' + b"0.1," * 500_000 + b"0]," + USAGE + b"}") == TokenUsage(9, 5)
    assert usage_at_end(b"{" + USAGE + b',"data":"' + b"x" * TAIL_BYTES + b'"}') == NOTHING
