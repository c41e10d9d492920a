"""The history of `prefix`: a prompt goes where its longest known beginning went, as far as there is room."""

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing import prefix_history
from app.routing.prefix_history import DEFAULT_BYTES, PrefixHistory, beginnings, endpoint_mark, lengths
from tests.support.forks import Parent

POOL = 7
URLS = [endpoint_mark(n * 0x9E3779B97F4A7C15) for n in range(1, 9)]


@pytest.fixture
def history() -> Iterator[PrefixHistory]:
    """A history that knows nothing."""
    parent = Parent(limit=1)
    yield PrefixHistory(parent.table)
    parent.close()


def hashes(text: bytes, most: int = DEFAULT_BYTES) -> list[bytes]:
    """The hashes of a prompt's beginnings."""
    key = beginnings((memoryview(text),), most)
    return [key[n : n + 4] for n in range(0, len(key), 4)]


def send(history: PrefixHistory, text: bytes, endpoint: int, pool: int = POOL) -> None:
    """Note that a prompt went to an endpoint."""
    key = beginnings((text,), DEFAULT_BYTES)
    history.remember(key, pool, endpoint, history.find(key, pool))


def found(history: PrefixHistory, text: bytes, pool: int = POOL) -> Sequence[int]:
    """Which endpoints are known to have the longest beginning."""
    match = history.find(beginnings((text,), DEFAULT_BYTES), pool)
    return sorted(match.endpoints) if match else []


def words(size: int, seed: int = 0) -> bytes:
    """Some text."""
    return random.Random(seed).randbytes(size)


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.sampled_from((100, 1024, DEFAULT_BYTES)))
def test_beginnings_are_equal_as_far_as_prompts_are(one: bytes, other: bytes, most: int) -> None:
    """A hash is of all bytes up to its length and of no others, whatever part is a memoryview."""
    same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ours, theirs = hashes(one, most), hashes(other, most)
    for length, a, b in zip(lengths(most), ours, theirs, strict=False):
        if length <= min(len(one), len(other)):
            assert (a == b) == (length <= same)
    assert beginnings((one,), most) == b"".join(ours)


@pytest.mark.parametrize("most", [1, 40, 511, 512, 513, 2048, 2049, 65_536, 1_000_000])
def test_lengths_are_few_and_no_gap_is_more_than_a_quarter(most: int) -> None:
    """512 bytes at first, and a quarter more from 2 KiB on, up to exactly as many bytes as count."""
    steps = lengths(most)
    assert steps[-1] == most
    assert all(b - a <= max(512, b // 5 + 1) for a, b in zip((0, *steps), steps, strict=False))
    assert len(steps) <= 34


def test_no_more_bytes_count_than_are_set() -> None:
    """Prompts that differ behind `prefix_bytes` are equal; those that differ in its last byte are not."""
    assert hashes(b"a" * 40 + b"b", 40) == hashes(b"a" * 40 + b"c", 40)
    assert hashes(b"a" * 39 + b"b", 40) != hashes(b"a" * 39 + b"c", 40)


def test_short_prompt_is_known_as_a_whole() -> None:
    """One that is shorter than the first length matches itself, and an empty one nothing."""
    assert len(hashes(b"hello")) == 1
    assert hashes(b"") == []
    assert hashes(b"hello") != hashes(b"hello!")


def test_conversation_is_found_as_it_grows(history: PrefixHistory) -> None:
    """Each turn is matched by the one before, and another conversation with the same system prompt by that alone."""
    system, turns = words(3000), words(20_000, 1)
    send(history, system + turns[:500], URLS[0])
    send(history, system + words(9000, 2), URLS[1])
    for end in range(1500, 20_000, 900):
        assert found(history, system + turns[:end]) in ([URLS[0]], sorted(URLS[:2])[: 2 if end < 1600 else 0])
        send(history, system + turns[:end], URLS[0])
    assert found(history, system + words(900, 3)) == sorted(URLS[:2])


def test_shared_beginning_is_known_of_several_endpoints(history: PrefixHistory) -> None:
    """Of four at most; those that used it last."""
    text = words(600)
    for url in URLS[:6]:
        send(history, text, url)
    assert len(found(history, text)) == 4


def test_models_do_not_share_a_history(history: PrefixHistory) -> None:
    """What one model's endpoints got says nothing of another model's."""
    send(history, words(600), URLS[0], pool=1)
    assert found(history, words(600), pool=2) == []


def test_table_is_bounded_and_forgets_what_was_used_longest_ago(
    history: PrefixHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes, the table has its size; what is used again stays."""
    now = 0.0
    monkeypatch.setattr(prefix_history, "monotonic", lambda: now)
    kept = words(600, 1)
    monkeypatch.setattr(prefix_history, "_BUCKETS", 7)  # 64 entries
    for number in range(500):
        now += 4
        send(history, kept, URLS[0])
        send(history, words(600, 10 + number), URLS[1])
    assert found(history, kept) == [URLS[0]]
    assert found(history, words(600, 10)) == []
    assert found(history, words(600, 509)) == [URLS[1]]


def test_clock_of_entries_may_wrap(history: PrefixHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 36 hours ages are counted from 0 again: an entry may then stay for too long, and nothing breaks."""
    now = 4.0 * (1 << 15) - 8
    monkeypatch.setattr(prefix_history, "monotonic", lambda: now)
    for number in range(20):
        now += 4
        send(history, words(600, number), URLS[0])
    assert all(found(history, words(600, number)) == [URLS[0]] for number in range(20))
    assert min(history._entries) >= 0


def test_mark_of_an_endpoint_is_of_its_url() -> None:
    """An id that is given to another URL matches nothing that the last one got."""
    assert endpoint_mark(0) != 0
    assert SimpleNamespace(mark=endpoint_mark(1 << 24)).mark == 1
    marks: Any = {endpoint_mark(n) for n in range(1, 1000)}
    assert len(marks) == 999
