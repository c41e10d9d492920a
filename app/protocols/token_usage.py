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
from typing import Any

import msgspec
from msgspec.structs import astuple

from app.native import plain_usage

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

_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What a decoder raises. Text that is not UTF-8 is no MsgspecError."""
_MOST = 1 << 40
_BACKSLASH = ord("\\")


class TokenUsage(msgspec.Struct, frozen=True, gc=False):
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
        return TokenUsage(*map(_larger, astuple(self), astuple(other)))


NOTHING = TokenUsage()


class _Rest(msgspec.Struct, gc=False):
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_rest = msgspec.json.Decoder(_Rest).decode


def usage_in(text: bytes, start: int = 0) -> TokenUsage:
    """Returns what the last `usage` from this index on says; `NOTHING` if there is none that can be read."""
    at = len(text)
    for _ in range(_MOST_FOUND):
        at = text.rfind(MEMBER, start, at)
        if at < 0:
            break
        if at == 0 or text[at - 1] != _BACKSLASH:
            counts = plain_usage(text, at + len(MEMBER))
            if counts is not None:
                return TokenUsage(*counts)
            usage = _usage_at(text, at)
            if usage is not None and (found := _read(usage)) != NOTHING:
                return found
    return NOTHING


def usage_at_end(body: bytes) -> TokenUsage:
    """Returns what the end of a JSON body says."""
    return usage_in(body, max(0, len(body) - TAIL_BYTES))


def _usage_at(text: bytes, at: int) -> dict[str, Any] | None:
    """Returns the value of the member that begins here, or None if it can't be read."""
    try:
        return _decode_rest(b"{" + text[at:]).usage  # a member of the whole: with what follows it is an object again
    except _UNREADABLE:
        pass  # it lies deeper, as in events, or is no member
    after = at + len(MEMBER)
    found = _VALUE.match(text, after, after + _MOST_OBJECT_BYTES)
    try:
        return None if found is None else _decode(found[1])
    except _UNREADABLE:
        return None


def _read(usage: dict[str, Any]) -> TokenUsage:
    # Members of a dict, for a record of all the names that servers use takes twice as long.
    given = _count(usage, "prompt_tokens")
    cached = _detail(usage, "prompt_tokens_details", "input_tokens_details", "cached_tokens")
    if given is None and (given := _count(usage, "input_tokens")) is not None:
        given += (_count(usage, "cache_read_input_tokens") or 0) + (_count(usage, "cache_creation_input_tokens") or 0)
    if cached is None:
        cached = _count(usage, "cache_read_input_tokens")
    output = _count(usage, "completion_tokens")
    if output is None:
        output = _count(usage, "output_tokens")
    if given is None and output is None:
        given = _count(usage, "total_tokens")  # some rerankers give no other
    reasoning = _count(usage, "reasoning_tokens")
    if reasoning is None:
        reasoning = _detail(usage, "completion_tokens_details", "output_tokens_details", "reasoning_tokens")
    return TokenUsage(given, output, cached, reasoning)


def _count(members: dict[str, Any], name: str) -> int | None:
    count = members.get(name)
    return count if type(count) is int and 0 <= count <= _MOST else None


def _detail(usage: dict[str, Any], one: str, other: str, name: str) -> int | None:
    details = usage.get(one) or usage.get(other)
    return _count(details, name) if type(details) is dict else None


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)
