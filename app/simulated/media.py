"""The simulated model's images, which are one pixel, and its speech, which is silence.

A body that can't be used raises ValueError, a MsgspecError or RecursionError.
"""

import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.simulated.text import EVENTS, Events, event, generate, whole

Medium = Callable[[str, bytes], tuple[Headers, bytes | Events]]
"""Takes the model's name and the body of a request."""

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # Base64
_WORD_BYTES = 4800
"""The silence for a word: 100 ms of 24,000 samples a second, each of 16 bits."""
_MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)
"""26 ms of silence: 44,100 samples a second and 128 kbit/s, all side information and samples 0."""
_AUDIO = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}


class _Image(msgspec.Struct, frozen=True):
    prompt: str
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    response_format: Literal["url", "b64_json", None] = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None


class _Speech(msgspec.Struct, frozen=True):
    input: str
    response_format: Literal["mp3", "wav", "pcm", None] = None
    stream_format: Literal["audio", "sse", None] = None


def _draw(_: str, body: bytes) -> tuple[Headers, bytes | Events]:
    request = msgspec.json.decode(body, type=_Image)
    usage = generate(request.prompt, 1).prompt_tokens
    counted = {"input_tokens": usage, "output_tokens": 1, "total_tokens": usage + 1}
    if request.stream:
        return [EVENTS], _image_events(request.partial_images or 0, counted)
    image = {"url": f"data:image/png;base64,{_PNG}"} if request.response_format == "url" else {"b64_json": _PNG}
    return whole({"created": 0, "data": [image] * (request.n or 1), "usage": counted})


def _image_events(partial_images: int, usage: dict[str, int]) -> Events:
    image = {"b64_json": _PNG, "created_at": 0, "size": "auto", "quality": "low", "background": "auto"}
    image["output_format"] = "png"
    for at in range(partial_images):
        kind = "image_generation.partial_image"
        yield event({"type": kind, **image, "partial_image_index": at}, named=True)
    yield event({"type": "image_generation.completed", **image, "usage": usage}, named=True)


def _speak(_: str, body: bytes) -> tuple[Headers, bytes | Events]:
    request = msgspec.json.decode(body, type=_Speech)
    kind = request.response_format or "mp3"
    words = len(generate(request.input, None).pieces)
    pieces = _audio(kind, words)
    if request.stream_format == "sse":
        return [EVENTS], _speech_events(pieces, words)
    return [("content-type", _AUDIO[kind])], (piece for piece in pieces)


def _audio(kind: str, words: int) -> Iterator[bytes]:
    """Yields the pieces: what comes first, if anything does, and one for each word."""
    if kind == "wav":
        size = words * _WORD_BYTES
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 24_000, 48_000, 2, 16)
        yield struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
    piece = _MP3_FRAME * 4 if kind == "mp3" else bytes(_WORD_BYTES)
    for _ in range(words):
        yield piece


def _speech_events(pieces: Iterator[bytes], words: int) -> Events:
    for piece in pieces:
        yield event({"type": "speech.audio.delta", "audio": b64encode(piece).decode()})
    usage: dict[str, Any] = {"input_tokens": words, "output_tokens": words, "total_tokens": 2 * words}
    yield event({"type": "speech.audio.done", "usage": usage})


MEDIA: dict[str, Medium] = {"/v1/images/generations": _draw, "/v1/audio/speech": _speak}
"""What a POST to each path makes."""
