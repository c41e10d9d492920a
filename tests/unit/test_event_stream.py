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
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.lists(st.integers(0, 4000)), st.sampled_from([b"\n", b"\r\n"]))
def test_stream_cut_anywhere_counts_the_same(name: str, cuts: list[int], line_end: bytes) -> None:
    """TCP and proxies cut where they like."""
    whole = b"".join(ALL[name].events).replace(b"\n", line_end)
    at = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    assert counts(*(whole[begin:end] for begin, end in pairwise(at))) == expected(ALL[name])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"data:", b"{", b'"usage"', b":", b'"', b"\\", b"\n", b"\r", b"}", b"1", b'"text":"']))
)
def test_any_bytes_are_read_the_same_in_one_piece_and_in_many(parts: list[bytes]) -> None:
    """No byte of a model server makes the reader fail, or count by how it came."""
    whole = b"".join(parts)
    assert counts(whole) == counts(*parts) == counts(*(whole[at : at + 1] for at in range(len(whole))))


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
