r"""The reader of an event stream's pieces: which events carry output, what it says of its tokens, and where it ends.

Pieces are cut anywhere, and an event ends with a blank line: LF or CR LF (WHATWG HTML section 9.2.6; a lone CR, which
the standard allows, no model server sends). An event without its blank line is incomplete and does not count.

**What carries output.** A chat chunk, a completion, an event of OpenAI's responses or of Anthropic's messages does if a
member that holds what the model wrote has text: an answer, reasoning, a call of a tool. So the role that opens a chat,
`message_start`, pings, comments, the chunk with the usage and `[DONE]` don't. An event of any other form does if it has
data at all.

**What ends it.** `[DONE]` of OpenAI's chat and completions, `response.completed`, `.incomplete` or `.failed` of its
responses, and Anthropic's `message_stop`. The last two kinds are known by the line `event:`, or by `type` where it is
the first member of the data. So nothing that a model writes looks like them: it is within a string, or lies deeper.
Only an event without output is looked at for this.

**What it costs.** The scan is a few `bytes.find`. The text that precedes the output in one event (`"content":"`) is
looked for in the next one first, and usually is there. Events with `usage` are only kept, the first and the last, and
read at the end: a stream that reports its usage with every token costs no more.

**Memory.** An event of more than `_MOST_BYTES` is cut: its beginning says what it is, and its end has the usage. The
same is cut however the pieces are, so pieces never change what is counted.
"""

import re

from app.protocols.token_usage import NOTHING, TokenUsage, usage_in

_HALF = 32 << 10
_MOST_BYTES = 2 * _HALF

_END = re.compile(rb"\n\r?\n")
_DATA = re.compile(rb"^data:(.*?)\r?$", re.MULTILINE)
_OUTPUT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|thinking|arguments|partial_json|name|refusal|transcript|data)"'
    rb'[ \t]*+:[ \t]*+"(?!")'
)
_OF_RESPONSES = re.compile(rb'"type"[ \t]*+:[ \t]*+"response\.')
_DELTA_OF_RESPONSES = re.compile(rb'"delta"[ \t]*+:[ \t]*+"(?!")')
"""Other events of OpenAI's responses repeat what was said, or what was asked."""
_KNOWN_FORM = re.compile(rb'"(?:choices|type|error)"')
_LAST = rb"(?:message_stop|response\.(?:completed|incomplete|failed))"
_LAST_EVENT = re.compile(rb"^event:[ \t]*+" + _LAST + rb"[ \t]*+\r?\n", re.MULTILINE)
_LAST_DATA = re.compile(rb'\[DONE\]\Z|\{[ \t]*+"type"[ \t]*+:[ \t]*+"' + _LAST + b'"')
_NAME_WITHIN_BYTES = 256
"""The name of an event stands before its data: so much of the beginning is searched for it."""
_NOT_YET = b"\0"
"""In no event: JSON escapes it."""


class EventReader:
    """Reads one stream."""

    __slots__ = ("_first_usage", "_kept", "_last_usage", "_marker", "_seen_at_usage", "ended", "events")

    def __init__(self) -> None:
        self.events = 0
        """How many events carried output."""
        self.ended = False
        """Whether the event that ends the stream has come."""
        self._kept: bytearray | None = None
        """The beginning of an event whose end has not come."""
        self._marker = _NOT_YET
        """What preceded the output when an event was last looked at closely."""
        self._first_usage: bytes | None = None
        self._last_usage: bytes | None = None
        self._seen_at_usage = 0
        """`events` when the last usage came."""

    def feed(self, piece: bytes) -> int:
        """Returns how many events that carry output have their end in this piece."""
        before = self.events
        end = len(piece) - 2
        # Nearly always: one event in one piece. To find one byte takes a third of what two take.
        if (
            self._kept is None
            and piece.endswith(b"\n\n")
            and (piece.find(b"\n") == end or (piece.find(b"\n\n") == end and piece.find(b"\r") < 0))
        ):
            self._read(piece)
        else:
            self._split(piece)
        return self.events - before

    def tokens(self) -> TokenUsage:
        """Returns what the stream has said of its tokens until now."""
        usage = NOTHING
        for event in (self._first_usage, self._last_usage):
            if event is not None:
                usage = usage.joined(usage_in(_data_of(event)))
        return usage

    def usage_is_final(self) -> bool:
        """Whether no output came after the last usage, so that this counts all of it."""
        return self._last_usage is not None and self._seen_at_usage == self.events

    def _split(self, piece: bytes) -> None:
        """Read the events whose end is in this piece, and keep what follows them."""
        kept = bytearray() if self._kept is None else self._kept
        begin, search = 0, max(0, len(kept) - 2)  # the blank line may have begun before
        kept += piece
        while (end := _END.search(kept, search)) is not None:
            search = end.end()
            self._read(bytes(kept[begin:search]))
            begin = search
        del kept[:begin]
        if len(kept) > 2 * _MOST_BYTES:  # not at every piece: each byte is moved once or twice at most
            del kept[_HALF:-_HALF]
        self._kept = kept or None

    def _read(self, event: bytes) -> None:
        if len(event) > _MOST_BYTES:
            event = event[:_HALF] + event[-_HALF:]
        at = event.find(self._marker)
        if (at >= 0 and event[at + len(self._marker)] != 0x22) or self._carries_output(event):  # 0x22: nothing in it
            self.events += 1
        at = event.rfind(b'"usage"')
        # Not if it is `null`, after the colon and perhaps a blank.
        if 0 <= at < len(event) - 9 and event[at + 8] != 0x6E and event[at + 9] != 0x6E:
            self._last_usage = event
            self._seen_at_usage = self.events
            if self._first_usage is None:
                self._first_usage = event

    def _carries_output(self, event: bytes) -> bool:
        """Whether an event carries output. Notes what precedes it, or that the event ends the stream."""
        data = _data_of(event)
        form = _DELTA_OF_RESPONSES if _OF_RESPONSES.search(data) else _OUTPUT
        found = form.search(data)
        if found is not None:
            self._marker = found[0]
            return True
        if _LAST_DATA.match(data) or _LAST_EVENT.search(event, 0, _NAME_WITHIN_BYTES):
            self.ended = True
            return False
        return bool(data) and _KNOWN_FORM.search(data) is None


def _data_of(event: bytes) -> bytes:
    """Returns the lines of data, without what precedes each."""
    return b"\n".join(_DATA.findall(event)).strip()
