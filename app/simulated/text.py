"""What the simulated model's responses are made of: words of the prompt, and vectors from a hash."""

import math
import struct
from collections.abc import Callable, Generator
from hashlib import blake2b
from itertools import cycle, islice
from typing import Any, NamedTuple

import msgspec

from app.http_fields import Headers
from app.protocols.calls import Call

MAX_TOKENS = 100_000
"""The longest text, whatever the request says."""
MAX_TOKEN_CHARS = 100
"""Longer words are cut, or one enormous word repeated would take all memory."""

Events = Generator[bytes, None, None]
Handle = Callable[[Call], tuple[Headers, bytes | Events]]

JSON = ("content-type", "application/json")
EVENTS = ("content-type", "text/event-stream")


class Text(NamedTuple):
    """The generated text."""

    pieces: list[str]
    """The tokens; together they are the text."""
    is_cut: bool
    prompt_tokens: int

    def usage(self) -> dict[str, int]:
        """Returns the tokens as OpenAI's API counts them."""
        generated = len(self.pieces)
        total = self.prompt_tokens + generated
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}


def whole(value: object) -> tuple[Headers, bytes]:
    """Returns a response of JSON."""
    return [JSON], msgspec.json.encode(value)


def event(value: dict[str, Any], *, named: bool = False) -> bytes:
    """Returns a server-sent event. `named`: with its `type` as its name."""
    data = b"data: %b\n\n" % msgspec.json.encode(value)
    return b"event: %b\n%b" % (value["type"].encode(), data) if named else data


def generate(prompt: str, limit: int | None) -> Text:
    """Returns the words of the prompt, one a token: all of them, or from the start again up to `limit`."""
    prompted = prompt.split()
    words = prompted or ["..."]
    limit = limit or len(words)
    spaced = cycle(" " + word[:MAX_TOKEN_CHARS] for word in words)
    pieces = list(islice(spaced, min(limit, MAX_TOKENS)))
    pieces[0] = pieces[0][1:]
    return Text(pieces, limit < len(words), len(prompted))


def inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Returns what is to be embedded, one by one."""
    if isinstance(given, str):
        return [given]
    tokens = [one for one in given if isinstance(one, int)]
    if not tokens:
        return [one for one in given if not isinstance(one, int)]
    if len(tokens) < len(given):
        raise ValueError("`input` mixes tokens with other inputs")
    return [tokens]


def embedding(one: str | list[int]) -> list[float]:
    """Returns a vector of length 1; its direction is the input's hash."""
    numbers = struct.unpack("<8i", blake2b(repr(one).encode(), digest_size=32).digest())
    length = math.hypot(*numbers)
    return [number / length for number in numbers]
