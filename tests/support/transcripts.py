"""Event streams as model servers send them, written by hand, with what is to be counted of each."""

from typing import NamedTuple

from app.protocols.token_usage import TokenUsage

CHUNK = b'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":"m"'


class Transcript(NamedTuple):
    """A stream, event by event."""

    events: tuple[bytes, ...]
    output: tuple[int, ...]
    """Which of them carry output."""
    usage: TokenUsage
    final: bool = True
    """Whether the usage covers all output."""


def _data(*texts: bytes) -> tuple[bytes, ...]:
    return tuple(b"data: " + text + b"\n\n" for text in texts)


def _chat(*choices: bytes, end: bytes = b"") -> tuple[bytes, ...]:
    return _data(*(b"{" + CHUNK + b',"choices":[{"index":0,' + choice + b"}]" + end + b"}" for choice in choices))


def _typed(*texts: bytes) -> tuple[bytes, ...]:
    """Events with a name before their data, which repeats it."""
    return tuple(b"event: " + text.split(b'"', 4)[3] + b"\ndata: " + text + b"\n\n" for text in texts)


DONE = b"data: [DONE]\n\n"

VLLM = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null',
            b'"delta":{"reasoning_content":"The user"},"logprobs":null,"finish_reason":null',
            b'"delta":{"reasoning_content":" greets"},"logprobs":null,"finish_reason":null',
            b'"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null',
            b'"delta":{"content":" \\"there\\""},"logprobs":null,"finish_reason":null',
            b'"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":null',
        ),
        *_data(
            b"{" + CHUNK + b',"choices":[],"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5,'
            b'"prompt_tokens_details":{"cached_tokens":4}}}'
        ),
        DONE,
    ),
    (1, 2, 3, 4),
    TokenUsage(9, 5, 4, None),
)
VLLM_CONTINUOUS = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":""},"finish_reason":null',
            end=b',"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}',
        ),
        *(
            event
            for at in (1, 2, 3)
            for event in _chat(
                b'"delta":{"content":" a"},"finish_reason":null',
                end=b',"usage":{"prompt_tokens":9,"total_tokens":1%d,"completion_tokens":%d}' % (at, at),
            )
        ),
    ),
    (1, 2, 3),
    TokenUsage(9, 3, None, None),
)
SGLANG = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"matched_stop":null',
            b'"delta":{"role":null,"content":null,"reasoning_content":"Hm","tool_calls":null},"matched_stop":null',
            b'"delta":{"role":null,"content":"","reasoning_content":" so","tool_calls":null},"matched_stop":null',
            b'"delta":{"role":null,"content":"Hi","reasoning_content":null,"tool_calls":null},"matched_stop":null',
            b'"delta":{"role":null,"content":"","reasoning_content":null,"tool_calls":null},"finish_reason":"stop"',
            end=b',"usage":null',
        ),
        *_data(
            b"{" + CHUNK + b',"choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5,'
            b'"prompt_tokens_details":null,"reasoning_tokens":2}}'
        ),
        DONE,
    ),
    (1, 2, 3),
    TokenUsage(7, 5, None, 2),
)
OPENAI_TOOLS = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function",'
            b'"function":{"name":"weather","arguments":""}}],"refusal":null},"logprobs":null,"finish_reason":null',
            b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\""}}]},"finish_reason":null',
            b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":"usage\\":{\\"prompt_tokens\\":1}}"}}]}',
            b'"delta":{},"logprobs":null,"finish_reason":"tool_calls"',
            end=b',"service_tier":"default","system_fingerprint":"fp_1","usage":null,"obfuscation":"x1Y"',
        ),
        *_data(
            b"{" + CHUNK + b',"service_tier":"default","choices":[],"usage":{"prompt_tokens":80,"completion_tokens":17,'
            b'"total_tokens":97,"prompt_tokens_details":{"cached_tokens":64,"audio_tokens":0},'
            b'"completion_tokens_details":{"reasoning_tokens":11,"audio_tokens":0,"accepted_prediction_tokens":0,'
            b'"rejected_prediction_tokens":0}},"obfuscation":"Zz"}'
        ),
        DONE,
    ),
    (0, 1, 2),
    TokenUsage(80, 17, 64, 11),
)
OPENAI_WITHOUT_USAGE = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null',
            b'"delta":{"content":"Hi"},"finish_reason":null',
            b'"delta":{"content":"!"},"finish_reason":null',
            b'"delta":{},"finish_reason":"stop"',
        ),
        DONE,
    ),
    (1, 2),
    TokenUsage(),
    final=False,
)
OPENAI_COMPLETIONS = Transcript(
    (
        *_data(
            b'{"id":"cmpl-1","object":"text_completion","choices":[{"text":" once","index":0,"finish_reason":null}]}',
            b'{"id":"cmpl-1","object":"text_completion","choices":[{"text":" more","index":0,"finish_reason":null}]}',
            b'{"id":"cmpl-1","object":"text_completion","choices":[{"text":"","index":0,"finish_reason":"length"}],'
            b'"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}',
        ),
        DONE,
    ),
    (0, 1),
    TokenUsage(3, 2),
)
OPENAI_RESPONSES = Transcript(
    _typed(
        b'{"type":"response.created","response":{"id":"resp_1","status":"in_progress","instructions":"Be kind",'
        b'"output":[],"reasoning":{"effort":"low"},"text":{"format":{"type":"text"}},"tools":[{"type":"function",'
        b'"name":"meter","parameters":{"type":"object","properties":{"usage":{"type":"object"}}}}],"usage":null}}',
        b'{"type":"response.in_progress","response":{"id":"resp_1","usage":null}}',
        b'{"type":"response.output_item.added","item":{"id":"rs_1","type":"reasoning","summary":[]}}',
        b'{"type":"response.reasoning_summary_text.delta","item_id":"rs_1","delta":"Think"}',
        b'{"type":"response.reasoning_summary_text.done","item_id":"rs_1","text":"Think"}',
        b'{"type":"response.output_item.added","item":{"id":"msg_1","type":"message","content":[]}}',
        b'{"type":"response.content_part.added","part":{"type":"output_text","text":"","annotations":[]}}',
        b'{"type":"response.output_text.delta","item_id":"msg_1","delta":"Hi","logprobs":[]}',
        b'{"type":"response.output_text.delta","item_id":"msg_1","delta":" you","logprobs":[]}',
        b'{"type":"response.output_text.done","item_id":"msg_1","text":"Hi you"}',
        b'{"type":"response.function_call_arguments.delta","item_id":"fc_1","delta":"{}"}',
        b'{"type":"response.output_item.done","item":{"type":"message","content":[{"type":"output_text","text":"Hi"}]}}',
        b'{"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[{"type":"message",'
        b'"content":[{"type":"output_text","text":"Hi you"}]}],"tools":[],"usage":{"input_tokens":37,'
        b'"input_tokens_details":{"cached_tokens":32},"output_tokens":11,"output_tokens_details":'
        b'{"reasoning_tokens":6},"total_tokens":48},"user":null,"metadata":{}},"sequence_number":12}',
    ),
    (3, 7, 8, 10),
    TokenUsage(37, 11, 32, 6),
)
ANTHROPIC = Transcript(
    _typed(
        b'{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m",'
        b'"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,'
        b'"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"output_tokens":1,'
        b'"service_tier":"standard","cache_creation":{"ephemeral_5m_input_tokens":10}}}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
        b'{"type": "ping"}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me"}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQB"}}',
        b'{"type":"content_block_stop","index":0}',
        b'{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}',
        b'{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hello"}}',
        b'{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":" \\n\\n"}}',
        b'{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}',
        b'{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}',
        b'{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{}"}}',
        b'{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":15}}',
        b'{"type":"message_stop"}',
    ),
    (3, 7, 8, 9, 11),
    TokenUsage(135, 15, 100, None),
)
OLLAMA = Transcript(
    (
        *_chat(
            b'"delta":{"role":"assistant","content":"Hel"},"finish_reason":null',
            b'"delta":{"role":"assistant","content":"lo"},"finish_reason":null',
            b'"delta":{"role":"assistant","content":""},"finish_reason":"stop"',
        ),
        *_data(b"{" + CHUNK + b',"choices":[],"usage":{"prompt_tokens":26,"completion_tokens":2,"total_tokens":28}}'),
        DONE,
    ),
    (0, 1),
    TokenUsage(26, 2),
)
SPACED = Transcript(
    _data(
        b'{"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}',
        b'{"id": "1", "choices": [{"index": 0, "delta": {"content": "Hi"}}], "usage": null}',
        b'{"id": "1", "choices": [{"index": 0, "delta": {"content": "!"}}], "usage": null}',
        b'{"id": "1", "choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}',
    ),
    (1, 2),
    TokenUsage(4, 2),
)
TRITON = Transcript(
    _data(
        b'{"model_name":"ensemble","model_version":"1","sequence_end":false,"text_output":" a"}',
        b'{"model_name":"ensemble","model_version":"1","sequence_end":false,"text_output":" b"}',
    ),
    (0, 1),
    TokenUsage(),
    final=False,
)
BROKEN_OFF = Transcript(
    (
        b": ping\n\n",
        b"retry: 3000\n\n",
        b"\n\n",
        *_chat(b'"delta":{"content":"Hi"},"finish_reason":null'),
        b": ping\n\n",
        *_data(b'{"error":{"message":"out of memory","type":"internal_error","code":500}}'),
    ),
    (3,),
    TokenUsage(),
    final=False,
)
ANTHROPIC_LEFT = Transcript(ANTHROPIC.events[:9], (3, 7, 8), TokenUsage(135, 1, 100), final=False)
LONG_EVENTS = Transcript(
    (
        *_chat(b'"delta":{"content":"' + b"x" * 300_000 + b'"},"finish_reason":null'),
        *_typed(
            b'{"type":"response.completed","response":{"output":[{"type":"message","content":[{"text":"'
            + b"y" * 200_000
            + b'"}]}],"usage":{"input_tokens":5,"output_tokens":6},"metadata":{}}}'
        ),
    ),
    (0,),
    TokenUsage(5, 6),
)

ALL = {name.lower(): one for name, one in vars().copy().items() if isinstance(one, Transcript)}
