"""The tokens that a response says it took: the member `usage`, in the forms that model servers give it.

OpenAI's chat, completions and embeddings count `prompt_tokens` and `completion_tokens`; its responses, and Anthropic's
messages, count `input_tokens` and `output_tokens`. Details stand beside them. Two things are made the same for all:

- **Input includes what came from a cache.** OpenAI's counts do. Anthropic's `input_tokens` does not, so what was read
  from its cache and what was written to it are added.
- **Output includes reasoning.** All servers count so.

A response is never decoded as a whole. The member is looked for from the end, where servers write it, and only its own
object is decoded. A quotation mark within a JSON string has a backslash before it, so no text of a model looks like the
member.
"""

import re
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

TAIL_BYTES = 16 << 10
"""So much of the end of a JSON body is searched. What servers write behind `usage` is shorter."""
MEMBER = b'"usage"'

_MOST_OBJECT_BYTES = 8 << 10
_MOST_FOUND = 8
"""More members of this name than these are not looked at: a schema of a tool may have one, too."""

_STRING = rb'"(?:[^"\\]|\\.)*+"'
_FLAT = rb'\{(?:[^{}"]++|' + _STRING + rb")*+\}"
_NESTED = rb'\{(?:[^{}"]++|' + _STRING + rb"|" + _FLAT + rb")*+\}"
_VALUE = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+(" + _NESTED + rb")", re.DOTALL)
"""An object with objects in it, but none in these."""

_Count = Annotated[int, Meta(ge=0, le=1 << 40)] | None


class _Details(msgspec.Struct):
    cached_tokens: _Count = None
    reasoning_tokens: _Count = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    reasoning_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class TokenUsage(NamedTuple):
    """How many tokens a request took, as its response says. None: it does not say."""

    input: int | None = None
    """Of the prompt, those from a cache included."""
    output: int | None = None
    """That were generated, those of reasoning included."""
    cached: int | None = None
    """Of the input: read from a cache."""
    reasoning: int | None = None
    """Of the output: thought and not said."""

    def joined(self, other: "TokenUsage") -> "TokenUsage":
        """Returns what two events of one stream say together: counts of a stream only grow."""
        return TokenUsage(*map(_larger, self, other))

    def plus(self, other: "TokenUsage") -> "TokenUsage":
        """Returns what two requests took together."""
        return TokenUsage(*map(_sum, self, other))


NOTHING = TokenUsage()


class _Rest(msgspec.Struct):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Usage).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode


def usage_in(text: bytes, start: int = 0) -> TokenUsage:
    """Returns what the last `usage` from this index on says; `NOTHING` if there is none that can be read."""
    at = len(text)
    for _ in range(_MOST_FOUND):
        at = text.rfind(MEMBER, start, at)
        if at < 0:
            break
        if text[at - 1 : at] != b"\\":
            usage = _usage_at(text, at)
            if usage is not None and (found := _read(usage)) != NOTHING:
                return found
    return NOTHING


def usage_at_end(body: bytes) -> TokenUsage:
    """Returns what the end of a JSON body says."""
    return usage_in(body, max(0, len(body) - TAIL_BYTES))


def _usage_at(text: bytes, at: int) -> _Usage | None:
    """Returns the value of the member that begins here, or None if it can't be read."""
    try:
        return _decode_rest(b"{" + text[at:]).usage  # a member of the whole: with what follows it is an object again
    except (msgspec.MsgspecError, RecursionError):
        pass  # it lies deeper, as in events, or is no member
    after = at + len(MEMBER)
    found = _VALUE.match(text, after, after + _MOST_OBJECT_BYTES)
    try:
        return None if found is None else _decode(found[1])
    except (msgspec.MsgspecError, RecursionError):
        return None


def _read(usage: _Usage) -> TokenUsage:
    given = usage.prompt_tokens
    cached = _first(usage.prompt_tokens_details, usage.input_tokens_details, "cached_tokens")
    if given is None and usage.input_tokens is not None:
        given = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    if cached is None:
        cached = usage.cache_read_input_tokens
    output = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    if given is None and output is None:
        given = usage.total_tokens  # some rerankers give no other
    reasoning = _first(usage.completion_tokens_details, usage.output_tokens_details, "reasoning_tokens")
    return TokenUsage(given, output, cached, usage.reasoning_tokens if reasoning is None else reasoning)


def _first(one: _Details | None, other: _Details | None, name: str) -> int | None:
    details = other if one is None else one
    count: int | None = None if details is None else getattr(details, name)
    return count


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
