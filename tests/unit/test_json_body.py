"""JSON bodies: members are found, replaced and cut by their places, and nothing else changes or is decoded."""

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from app.errors import InvalidRequest, UnsupportedBody, UpstreamBroken
from app.http_fields import Headers
from app.protocols import infer, json_body, openai, request_body, v2
from app.protocols.calls import Reply
from app.protocols.interfaces import Operation
from app.protocols.json_body import MalformedJson
from tests.support.client_request import client_request

MEGABYTES = 4 << 20


class Two(msgspec.Struct):
    """An object of which two members are looked at."""

    model: json_body.MaybeRaw = UNSET
    prompt: json_body.MaybeRaw = UNSET


decode_two = msgspec.json.Decoder(Two).decode

_spaces = st.text(" \t\r\n", max_size=3)
_names = st.sampled_from(("model", "prompt", "Model", "a", "\u00fc", 'x":"', "\\model", ""))
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0.1, 1e300))
    | st.text('model\u00fc"\\{},:', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _objects(draw: st.DrawFn) -> bytes:
    """The text of an object, with blanks anywhere and keys in either of JSON's spellings."""
    members = []
    for name, value in draw(st.dictionaries(_names, _values, max_size=4)).items():
        key = json.dumps(name)
        if draw(st.booleans()):
            key = '"' + "".join(f"\\u{ord(letter):04x}" for letter in name) + '"'
        blanks = [draw(_spaces) for _ in range(4)]
        ascii_only = draw(st.booleans())
        text = json.dumps(value, ensure_ascii=ascii_only, indent=draw(st.sampled_from((None, 1))))
        members.append(f"{blanks[0]}{key}{blanks[1]}:{blanks[2]}{text}{blanks[3]}")
    return f"{draw(_spaces)}{{{','.join(members) or draw(_spaces)}}}{draw(_spaces)}".encode()


@pytest.mark.slow
@effort(max_examples=300)
@given(_objects(), st.sampled_from((("model",), ("prompt",), ("model", "prompt"), ())))
def test_members_are_cut_and_all_others_keep_their_bytes(text: bytes, names: tuple[str, ...]) -> None:
    """What is left is the same object without these members, and every other value is still spelled as it was."""
    found = json_body.given(decode_two(text))
    rest = json_body.without(text, [found[name] for name in names if name in found])
    assert json.loads(rest) == {name: value for name, value in json.loads(text).items() if name not in names}
    raw = msgspec.json.Decoder(dict[str, Raw])
    assert raw.decode(rest).items() <= raw.decode(text).items()


@pytest.mark.slow
@effort(max_examples=300)
@given(_objects())
def test_a_member_is_replaced_and_all_other_bytes_stay(text: bytes) -> None:
    """Replacing a value changes that value only, and inserting a member inserts bytes only."""
    value = json_body.given(decode_two(text)).get("model")
    changed = b"".join(json_body.with_member(text, "model", value, b'"new"'))
    assert json.loads(changed) == {**json.loads(text), "model": "new"}
    if value is not None:
        begin, end = json_body.span(text, value)
        assert changed == text[:begin] + b'"new"' + text[end:]


def test_a_value_of_another_text_has_no_place() -> None:
    """A view of other bytes is an error, and not some place in this text."""
    with pytest.raises(ValueError, match="no view of this text"):
        json_body.span(b'{"model": 1}', Raw(b"1"))


@given(
    st.lists(st.binary(max_size=9) | st.text(max_size=9).map(str.encode), max_size=4).map(b"".join), st.integers(1, 5)
)
def test_utf8_is_checked_across_pieces(text: bytes, step: int) -> None:
    """The check finds what decoding at once finds, wherever the pieces end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_UTF8_STEP", step)
        try:
            text.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(MalformedJson, match=rf"byte 0x{text[error.start]:02x} at {error.start}$"):
                json_body.check_utf8(text)
        else:
            json_body.check_utf8(text)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model":"a","Model":"b"}', "twice"),
        (b'{"Model":"b","model":"a"}', "twice"),
        (b'{"model":"nope","model":"a"}', "twice"),
        (b'{"mod\\u0065l":"nope","model":"a"}', "twice"),
        (b'{"model":"a","\\u004d\\u004F\\u0044\\u0045\\u004C":"b"}', "twice"),
        (b'{"model":"a","x":{"model":1},"MODEL":null}', "twice"),
        (b'{"mOdEl":"b"}', "other capitals"),
        (b'{"tools":[{"model":1}],"\\u004dodel":"b"}', "other capitals"),
    ],
)
def test_a_model_that_parsers_read_differently_is_refused(body: bytes, words: str) -> None:
    """Another spelling of `model` at the top level: one parser takes one model, another parser another."""
    with pytest.raises(InvalidRequest, match=words):
        openai.ADAPTER.operations[0].parse(client_request(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","tools":[{"Model":"b","model":"c"}]}',
        b'{"tools":[{"model":"c"}],"model":"a","text":"\\"model\\":"}',
        b'{"\\u006dodel":"a"}',
        b'{"model":"a","text":"\\u004dODEL \\u0041"}',
        b'{"model":"a","x":"model","y":["model","MODEL"]}',
        b'{"model":"a","model2":"b","a model":1}',
    ],
)
def test_other_places_may_say_model_too(body: bytes) -> None:
    """`model` in nested objects, in values and as a part of other names means nothing."""
    assert openai.ADAPTER.operations[0].parse(client_request(body)).model == "a"


LONG_S, KELVIN = "\u017f", "\u212a"


class Kind(msgspec.Struct):
    """An object of one member with a k in its name."""

    kind: json_body.MaybeRaw = UNSET


decode_kind = msgspec.json.Decoder(Kind).decode


@pytest.mark.parametrize("letter", [LONG_S, r"\u017f", r"\u017F", "S", r"\u0053"])
@pytest.mark.parametrize("name", ["messages", "stream", "inputs"])
def test_members_are_compared_as_go_does(name: str, letter: str) -> None:
    """The long s is an s where case is ignored, raw or escaped; so a second member of that name is refused."""
    other = name.replace("s", letter, 1)
    for members in (f'"{other}":[],"{name}":[]', f'"{name}":[],"{other}":[]', f'"{name}":[],"x\u017f":1,"{other}":2'):
        with pytest.raises(InvalidRequest, match=f"`{name}` twice"):
            infer.parse_inference(client_request(f'{{"prompt":"p",{members}}}'.encode()))
    with pytest.raises(InvalidRequest, match=f"`{name}` with other capitals"):
        infer.parse_inference(client_request(f'{{"prompt":"p","{other}":[]}}'.encode()))


@pytest.mark.parametrize("letter", [KELVIN, r"\u212a", r"\u212A", "K", r"\u004b"])
def test_the_kelvin_sign_is_a_k(letter: str) -> None:
    """As the long s is an s."""
    body = f'{{"kind":1,"{letter}ind":2}}'.encode()
    found = json_body.given(decode_kind(body))
    with pytest.raises(InvalidRequest, match="`kind` twice"):
        request_body.refuse_ambiguous(decode_kind, client_request(body), found, ("kind",))


@pytest.mark.slow
def test_no_other_character_is_a_letter_of_ascii() -> None:
    """The two are all that Unicode's case folding has."""
    letters = set("abcdefghijklmnopqrstuvwxyz")
    assert [chr(c) for c in range(128, 0x110000) if chr(c).casefold() in letters] == [LONG_S, KELVIN]


@pytest.mark.parametrize(
    "text",
    [
        LONG_S,
        KELVIN,
        r"\u017f",
        r"\\u017f",
        r"\\\u017f",
        r"\u004d",
        r"\\u0053",
        '\\"me\u017f\u017fages\\":',
        "\u0130\u0131",
    ],
)
def test_values_may_have_letters_of_other_alphabets(text: str) -> None:
    """Values and nested names mean nothing, whatever their escapes, and are passed on as written."""
    body = f'{{"prompt":"{text}","x":{{"{text}":1}},"me\u017f":"{text}"}}'.encode()
    inference = infer.parse_inference(client_request(body))
    assert inference.prompt == Raw(f'"{text}"'.encode())
    assert inference.body == body


def _deep(levels: int) -> bytes:
    return b'{"x":%b%b}' % (b"[" * levels, b"]" * levels)


@pytest.mark.parametrize("levels", [*range(900, 1000, 3), 2000, 100_000])
def test_no_depth_passes_once_and_fails_later(levels: int) -> None:
    """A body that is accepted can be sent under every name, by every operation; any other is refused at once."""
    body = _deep(levels)
    try:
        call = openai.ADAPTER.operations[0].parse(client_request(body))
    except InvalidRequest:
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            infer.parse_inference(client_request(body))
        return
    _, sent = openai.ADAPTER.encode(call_of(call), "other", None)
    assert b"".join(sent) == b'{"model":"other",' + body[1:]


def call_of(parsed: Any) -> Any:
    """The call that a parsed request sends."""
    calls: list[Any] = []
    model: Any = type("Model", (), {"relay": staticmethod(calls.append)})
    parsed.send(model, list, b"", "", [])
    return calls[0]


@pytest.mark.parametrize("response", [_deep(2000), b"{", b"", b'{"choices":[]}', b'{"choices":[{}]}', b"\xff", b"[]"])
def test_a_response_without_an_output_is_the_model_servers_fault(response: bytes) -> None:
    """Whatever is wrong with it: UpstreamBroken, which is a 502."""
    with pytest.raises(UpstreamBroken, match="without an output"):
        infer.output_of(openai.ADAPTER, Reply(200, [], None, (), lambda: None), response)
    with pytest.raises(UpstreamBroken, match="without an output"):
        infer.output_of(v2.ADAPTER, Reply(200, [], None, (), lambda: None), response)


def test_the_output_of_infer_keeps_its_bytes() -> None:
    """Numbers and escapes are passed on as the model server wrote them."""
    reply = Reply(200, [], None, (), lambda: None)
    text = b'{"choices":[{"message":{"content":"\\u00fc"}},{"message":{"content":null}}]}'
    assert infer.output_of(openai.ADAPTER, reply, text) == Raw(b'"\\u00fc"')
    assert infer.output_of(v2.ADAPTER, reply, b'{"outputs": [1E2, 7e-320]}') == Raw(b"[1E2, 7e-320]")
    with pytest.raises(UpstreamBroken, match="not UTF-8"):
        infer.output_of(openai.ADAPTER, reply, b'{"choices":[{"message":{"content":"\xff"}}]}')


def test_what_infer_passes_on_keeps_its_bytes() -> None:
    """Options are never decoded and written again."""
    inference = infer.parse_inference(client_request(b'{"t": 1E2, "prompt": "\\u00fc", "n":7e-320 , "stream":true }'))
    body = infer.upstream_call(openai.ADAPTER, "m", inference).body
    assert body == b'{"messages":[{"role":"user","content":"\\u00fc"}],"t": 1E2, "n":7e-320 }'
    own = infer.parse_inference(client_request(b'{"messages": [1], "prompt": "p"}'))
    assert infer.upstream_call(openai.ADAPTER, "m", own).body == b'{"messages": [1]}'


HOSTILE = {
    "denormal floats": (b'{"prompt":"x","o":[...0]}', b"7e-320,"),
    "small integers": (b'{"prompt":"x","inputs":[...0]}', b"1,"),
    "empty objects": (b'{"prompt":"x","messages":[...0]}', b"{},"),
    "members": (b'{"prompt":"x",..."":0}', b'"":0,'),
    "nested models": (b'{"prompt":"x","o":[...0]}', b'{"model":0},'),
    "escaped letters": (b'{"prompt":"x","o":[...0]}', b'"\\u004d\\u006d",'),
    "long s": (b'{"prompt":"x","o":[...0]}', '"me\u017f\u017fages",'.encode()),
    "blanks": (b'{"prompt":..."x","model":..."m"...}', b" "),
    "characters of four bytes": (b'{"prompt":"..."}', "\U0001f600".encode()),
    "lone surrogate at the end": (b'{"prompt":"...\\ud83d"}', b"\\n"),
}
"""Bodies, and what stands in each, for the dots, as often as it goes into four megabytes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["openai", "v2", "infer"])
def test_reading_a_body_takes_memory_in_proportion(kind: str, name: str) -> None:
    """Reading takes at most 2.5 times the body's size beside the body, whatever it is made of, and gives that back."""
    around, piece = HOSTILE[name]
    body = around.replace(b"...", piece * (MEGABYTES // len(piece)))
    parse = {
        "openai": openai.ADAPTER.operations[0].parse,
        "v2": v2.ADAPTER.operations[0].parse,
        "infer": infer.parse_inference,
    }[kind]
    request = client_request(body, params={"name": "m"})
    tracemalloc.start()
    try:
        parsed: Any = parse(request)
        if kind == "v2":
            parsed.prompt()
        if kind == "infer":
            infer.upstream_call(openai.ADAPTER, "m", parsed)
    except InvalidRequest:
        assert name == "lone surrogate at the end" or kind == "v2"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2.5 * len(body)


CURL = [("content-type", "application/x-www-form-urlencoded"), ("x-a", "b")]
JSON = ("content-type", "application/json")


@pytest.mark.parametrize(
    ("declared", "passed"),
    [
        (CURL, [("x-a", "b"), JSON]),
        ([], [JSON]),
        ([JSON], [JSON]),
        ([("content-type", "Application/JSON; charset=UTF-8")], [JSON]),
        ([("content-type", "application/json; charset=utf-16")], [JSON]),
        ([("content-type", "text/plain"), ("content-encoding", "gzip")], [JSON]),
        ([("content-encoding", "identity"), JSON], [JSON]),
    ],
)
def test_what_was_read_as_json_goes_on_as_json(declared: Headers, passed: Headers) -> None:
    """Under /v1, model servers get the type of what was read, not what curl declares by default."""
    assert json_body.as_json(declared) == passed
    parsed = openai.ADAPTER.operations[0].parse(client_request(b"{}"))
    calls: list[Any] = []
    model: Any = type("Model", (), {"relay": staticmethod(calls.append)})
    parsed.send(model, lambda: list(declared), b"", "", [])
    assert calls[0].headers == passed


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_refused_by_its_encoding(encoding: str) -> None:
    """415 that names the encoding where the body can't be read; a body that is plain JSON is read."""
    with pytest.raises(UnsupportedBody, match=f"Content-Encoding {encoding!r}"):
        infer.parse_inference(client_request(b"\x1f\x8b\x08", content_encoding=encoding))
    assert infer.parse_inference(client_request(b'{"prompt":"p"}', content_encoding=encoding)).prompt == Raw(b'"p"')


def test_compressed_tensors_pass_unread() -> None:
    """Under /v2 the model server decompresses; only a form that curl declares is corrected."""
    operation: Operation = v2.ADAPTER.operations[0]
    gzip = client_request(b"\x1f\x8b", content_encoding="gzip", content_type=CURL[0][1], params={"name": "m"})
    parsed: Any = operation.parse(gzip)
    assert (list(parsed.prompt()), parsed.is_json) == ([], False)
    plain = client_request(b'{"inputs":[]}', content_type=CURL[0][1], params={"name": "m"})
    parsed = operation.parse(plain)
    assert parsed.is_json
    binary = client_request(b'{"inputs":[]}x', inference_header_content_length="13", params={"name": "m"})
    parsed = operation.parse(binary)
    assert (not parsed.is_json, [bytes(part) for part in parsed.prompt()]) == (True, [b"[]"])


def test_a_string_is_named_for_what_it_is() -> None:
    """The message has the member and the type that was found."""
    for text, found in ((b"1", "number"), (b"-1", "number"), (b"{}", "object"), (b"true", "boolean")):
        with pytest.raises(InvalidRequest, match=rf"`model` must be a string - at `\$.model`: it is of type {found}"):
            request_body.text_of("model", Raw(text))
