"""What is counted of an event stream: output and usage, whatever server sends it and however it is cut."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocols.event_stream import EventReader
from app.protocols.token_usage import TokenUsage
from tests.support.transcripts import ALL, VLLM, Transcript

TRANSCRIPTS = pytest.mark.parametrize("transcript", ALL.values(), ids=ALL)


def counts(*pieces: bytes) -> tuple[int, TokenUsage, bool]:
    """What is counted of these pieces."""
    reader = EventReader()
    told = sum(reader.feed(piece) for piece in pieces)
    assert told == reader.events
    return told, reader.tokens(), reader.usage_is_final()


def expected(transcript: Transcript) -> tuple[int, TokenUsage, bool]:
    """What is to be counted."""
    return len(transcript.output), transcript.usage, transcript.final


@TRANSCRIPTS
def test_events_with_output_count_and_no_others(transcript: Transcript) -> None:
    """Text, reasoning and tool calls count; roles, pings, comments, repetitions, usage and ends don't."""
    reader = EventReader()
    assert tuple(at for at, event in enumerate(transcript.events) if reader.feed(event)) == transcript.output


@TRANSCRIPTS
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_pieces_of_any_length_count_the_same(transcript: Transcript, line_end: bytes) -> None:
    """One piece, an event each, and pieces of one to seven bytes; LF and CR LF."""
    whole = b"".join(transcript.events).replace(b"\n", line_end)
    assert counts(whole) == expected(transcript)
    assert counts(*(event.replace(b"\n", line_end) for event in transcript.events)) == expected(transcript)
    for size in (1, 2, 3, 7) if len(whole) < 10_000 else (1000, 65536):
        assert counts(*(whole[at : at + size] for at in range(0, len(whole), size))) == expected(transcript)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.sampled_from(sorted(ALL)), st.lists(st.integers(0, 4000)), st.sampled_from([b"\n", b"\r\n"]))
def test_stream_cut_anywhere_counts_the_same(name: str, cuts: list[int], line_end: bytes) -> None:
    """TCP and proxies cut where they like."""
    whole = b"".join(ALL[name].events).replace(b"\n", line_end)
    at = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    assert counts(*(whole[begin:end] for begin, end in pairwise(at))) == expected(ALL[name])


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([b"data:", b"{", b'"usage"', b":", b'"', b"\\", b"\n", b"\r", b"}", b"1", b'"text":"']))
)
def test_any_bytes_are_read_the_same_in_one_piece_and_in_many(parts: list[bytes]) -> None:
    """No byte of a model server makes the reader fail, or count by how it came."""
    whole = b"".join(parts)
    assert counts(whole) == counts(*parts) == counts(*(whole[at : at + 1] for at in range(len(whole))))


ENDS = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\r\n\r\n",
    b": note\nid: 7\nevent: message_stop\ndata: {}\n\n",
    b'data: {"type":"message_stop"}\n\n',
    b'data: { "type" : "response.completed", "response": {}}\n\n',
    *(
        b'event: response.%b\ndata: {"response":{},"type":"x"}\n\n' % end
        for end in (b"completed", b"incomplete", b"failed")
    ),
    b'event: response.completed\ndata: {"type":"response.completed","x":"' + b"x" * 300_000 + b'"}\n\n',
]
NO_ENDS = [
    b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"data: [DONE]\\n\\n"}}]}\n\n',
    b'data: {"choices":[],"x":{"type":"message_stop"}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","x":{"type":"message_stop"}}\n\n',
    b'event: content_block_delta\ndata: {"type":"x","delta":{"text":"{\\"type\\":\\"message_stop\\"}"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
    b'event: response.completed.not\ndata: {"type":"response.output_item.done"}\n\n',
    b": [DONE]\n\n",
    b"data: [DONE]x\n\n",
    b"data: [DONE]\n",
    b"event: message_stop\n",
    b"id: event: message_stop\n\n",
]


def has_ended(*pieces: bytes) -> bool:
    """Whether the last of these pieces, and none before, ends the stream."""
    reader = EventReader()
    *before, last = ((reader.feed(piece), reader.ended)[1] for piece in pieces)
    assert not any(before)
    return last


@pytest.mark.parametrize("after", [b"", *VLLM.events[2:4]])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[:40])
def test_event_that_ends_a_stream_is_known_wherever_it_is_cut(end: bytes, after: bytes) -> None:
    """Whatever came before: between any two of its bytes the stream has not ended, and with its last one it has."""
    assert has_ended(after + end)
    for cut in (*range(1, min(60, len(end))), len(end) - 1):
        assert has_ended(after, end[:cut], end[cut:])
    assert has_ended(after, *(end[at : at + 1] for at in range(min(80, len(end) - 1))), end[min(80, len(end) - 1) :])


@pytest.mark.parametrize("event", NO_ENDS)
def test_nothing_else_ends_a_stream(event: bytes) -> None:
    """Neither what a model writes, nor an event of another name, nor one that is not complete."""
    assert not has_ended(event)
    assert not has_ended(*(event[at : at + 1] for at in range(len(event))))


@TRANSCRIPTS
def test_streams_end_where_their_servers_say_so(transcript: Transcript) -> None:
    """With the last event, or not at all."""
    reader = EventReader()
    ended = [(reader.feed(event), reader.ended)[1] for event in transcript.events]
    assert not any(ended[:-1])
    names = (b"[DONE]", b'"message_stop"', b'"response.completed"')
    assert ended[-1] == any(name in transcript.events[-1] for name in names)


def test_event_without_its_blank_line_does_not_count() -> None:
    """A client would not see it either."""
    assert counts(VLLM.events[3].rstrip(b"\n")) == (0, TokenUsage(), False)
    assert counts(VLLM.events[3].rstrip(b"\n"), b"\n") == (0, TokenUsage(), False)
    assert counts(VLLM.events[3].rstrip(b"\n"), b"\n", b"\n") == (1, TokenUsage(), False)


def test_data_on_several_lines_is_one_event() -> None:
    """The lines of an event's data are joined."""
    lines = b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,\ndata:"completion_tokens":2}}\n\n'
    assert counts(lines) == (0, TokenUsage(1, 2), True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 65536])
def test_endless_event_takes_bounded_memory(size: int) -> None:
    """64 MiB without a blank line: a constant is kept."""
    reader, piece = EventReader(), b"x" * size
    reader.feed(b'data: {"choices":[{"delta":{"content":"')
    tracemalloc.start()
    for _ in range((64 << 20) // size):
        reader.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert reader.feed(b'"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n') == 1
    assert reader.tokens() == TokenUsage(1, 2)
