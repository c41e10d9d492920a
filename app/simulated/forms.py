"""The simulated model's paths that take a form: transcriptions, translations, and edited images.

A form is read to its end and not kept. The text says how long the form was; the image is one white pixel.
"""

import re
from collections.abc import Generator
from typing import NamedTuple

import gevent

from app.http_fields import Headers
from app.protocols.calls import Call
from app.simulated.text import EVENTS, Handle, event, whole

_TEXT = ("content-type", "text/plain; charset=utf-8")
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsvfW2gAAAABJRU5ErkJggg=="
"""A PNG in base64."""
_FIELD = re.compile(rb'name="(response_format|stream|language)"[^\n]*\r\n\r\n([\w-]{1,20})\r\n')
_END_BYTES = 1 << 16


class FormServer(NamedTuple):
    """Serves one model; it waits `latency_s` before the first token and `token_s` for each."""

    latency_s: float
    token_s: float

    def find(self, path: str) -> tuple[str, Handle] | None:
        """Returns the method of a path and its handler, or None where nothing is."""
        match path:
            case "/v1/audio/transcriptions" | "/v1/audio/translations":
                return "POST", self._transcribe
            case "/v1/images/edits":
                return "POST", self._edit
        return None

    def _transcribe(self, call: Call) -> tuple[Headers, bytes | Generator[bytes, None, None]]:
        size, fields = _read(call)
        words = ["A", "form", "of", str(size), "bytes."]
        if fields.get("stream") == "true":
            return [EVENTS], self._events(words)
        gevent.sleep(self.latency_s + self.token_s * len(words))
        text = " ".join(words)
        segment = {"id": 0, "seek": 0, "start": 0.0, "end": 1.0, "text": text, "tokens": []}
        scores = {"temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}
        match fields.get("response_format", "json"):
            case "text":
                return [_TEXT], f"{text}\n".encode()
            case "srt":
                return [_TEXT], f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n".encode()
            case "vtt":
                return [_TEXT], f"WEBVTT\n\n00:00.000 --> 00:01.000\n{text}\n".encode()
            case "verbose_json":
                about = {"task": "transcribe", "language": fields.get("language", "english"), "duration": 1.0}
                return whole({**about, "text": text, "segments": [segment | scores]})
        return whole({"text": text})

    def _events(self, words: list[str]) -> Generator[bytes, None, None]:
        gevent.sleep(self.latency_s)
        for at, word in enumerate(words):
            if self.token_s:
                gevent.sleep(self.token_s)
            yield event({"type": "transcript.text.delta", "delta": f" {word}" if at else word})
        yield event({"type": "transcript.text.done", "text": " ".join(words)})

    def _edit(self, call: Call) -> tuple[Headers, bytes]:
        _read(call)
        gevent.sleep(self.latency_s)
        return whole({"created": 0, "data": [{"b64_json": _PIXEL}]})


def _read(call: Call) -> tuple[int, dict[str, str]]:
    """Read the form. Returns its size, and the fields that stand near its beginning or its end."""
    size, end = len(call.body), b""
    while call.rest is not None and (piece := call.rest.read()):
        size += len(piece)
        end = (end + piece)[-_END_BYTES:]
    found = _FIELD.findall(call.body) + _FIELD.findall(end)
    return size, {name.decode(): value.decode() for name, value in found}
