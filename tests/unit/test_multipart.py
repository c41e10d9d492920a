"""The reader of forms: it finds the field `model` however a form is written and cut, and refuses what is ambiguous."""

import email
import email.policy
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import pytest
import python_multipart
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequest, RouterError, UnsupportedBody
from app.protocols.multipart import MODEL_WITHIN_BYTES, FormReader, boundary_of

MODEL = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n%b\r\n'
END = b"--x--\r\n"


def read(pieces: Iterable[bytes]) -> str | None:
    """The name in a form that comes in these pieces, which must stand where the reader says."""
    reader, body = FormReader(b"x"), b""
    for piece in pieces:
        reader.feed(piece)
        body += piece
    reader.end()
    if reader.model is None:
        return None
    assert body[reader.model.begin : reader.model.end].decode() == reader.model.name
    return reader.model.name


def with_head(*lines: bytes) -> bytes:
    """A form whose first part has these header lines, and the content `m`."""
    return b"--x\r\n" + b"\r\n".join(lines) + b"\r\n\r\nm\r\n" + END


DISPOSITION = b'Content-Disposition: form-data; name="model"'
GOOD: dict[str, bytes] = {
    "alone": MODEL + END,
    "first": MODEL + FILE % b"z" + END,
    "last": FILE % b"z" * 3 + MODEL + END,
    "empty file": FILE % b"" + MODEL + END,
    "preamble": b"This is a form.\r\n\r\n" + MODEL + END,
    "epilogue": MODEL + END + b"\r\nThat was a form. --x\r\n" + MODEL,
    "no line end at the end": MODEL + END[:-2],
    "blanks after a delimiter": MODEL.replace(b"--x", b"--x \t ") + END.replace(b"--x--", b"--x-- "),
    "a delimiter within a line": FILE % b"z--x\r\nz --x--\r\n" + MODEL + END,
    "dashes": FILE % b"--\r\n--\r\n-x\r\n--y" + MODEL + END,
    "line ends in a file": FILE % b"\r\n\r\n\n\n\r\r" + MODEL + END,
    "token": with_head(b"content-disposition:form-data;name=model"),
    "capitals": with_head(b'CONTENT-DISPOSITION: Form-Data; NAME="model"'),
    "semicolon at the end": with_head(DISPOSITION + b"; "),
    "folded": with_head(b'Content-Disposition: form-data;\r\n\tname="model"'),
    "other fields": with_head(b"Content-Type: text/plain; charset=utf-8", DISPOSITION, b"X: \xff"),
    "plain encoding": with_head(DISPOSITION, b"Content-Transfer-Encoding: 8BIT"),
    "other names": FILE.replace(b'"file"', b'"models"') % b"z"
    + FILE.replace(b'"file"', b'"Model"') % b"z"
    + MODEL
    + END,
    "escapes in a file's name": FILE.replace(b"a.wav", b'a\\"; name=\\"model') % b"z" + MODEL + END,
    "extended name of a file": FILE.replace(b'"a.wav"', b"\"a\"; filename*=utf-8''a") % b"z" + MODEL + END,
}


@pytest.mark.parametrize("name", GOOD)
def test_model_is_found_wherever_the_form_is_cut(name: str) -> None:
    """All that RFC 7578 and RFC 2046 allow, in one piece, by the byte, and in two pieces at each place."""
    body = GOOD[name]
    assert read([body]) == "m"
    assert read(body[at : at + 1] for at in range(len(body))) == "m"
    assert {read([body[:at], body[at:]]) for at in range(len(body))} == {"m"}


BAD: dict[str, tuple[bytes, str]] = {
    "two models": (MODEL + MODEL + END, "twice"),
    "two models, far apart": (MODEL + FILE % (b"z" * 200_000) + MODEL + END, "twice"),
    "no disposition": (with_head(b"X: y"), "Content-Disposition"),
    "no head": (b"--x\r\n\r\nm\r\n" + END, "without a head"),
    "two dispositions": (with_head(DISPOSITION, DISPOSITION), "two Content-Disposition"),
    "another disposition": (with_head(DISPOSITION.replace(b"form-data", b"attachment")), "form-data"),
    "two names": (with_head(DISPOSITION + b"; name=other"), "twice"),
    "extended name": (with_head(b"Content-Disposition: form-data; name*=utf-8''model"), "extended"),
    "name in pieces": (with_head(b"Content-Disposition: form-data; name*0=mo; name*1=del"), "extended"),
    "escaped name": (with_head(DISPOSITION.replace(b"mod", b"mod\\")), "not escaped"),
    "open quote": (with_head(b'Content-Disposition: form-data; name="model'), "malformed"),
    "no quotes": (with_head(b"Content-Disposition: form-data; name=my model"), "malformed"),
    "a file": (with_head(DISPOSITION + b'; filename="a"'), "no file"),
    "an extended file": (with_head(DISPOSITION + b"; filename*=utf-8''a"), "no file"),
    "base64": (with_head(DISPOSITION, b"Content-Transfer-Encoding: base64"), "not encoded"),
    "quoted-printable": (with_head(DISPOSITION, b"content-transfer-encoding: quoted-printable"), "not encoded"),
    "no UTF-8": (MODEL.replace(b"\r\nm", b"\r\n\xff") + END, "UTF-8"),
    "long name": (MODEL.replace(b"\r\nm", b"\r\n" + b"m" * 2000) + END, "longer than"),
    "endless name": (MODEL[:-2] + b"m" * 2000, "longer than"),
    "long head": (b"--x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", "head is longer"),
    "endless head": (b"--x\r\nX: " + b"y" * 20_000, "head is longer"),
    "bare line feed in a head": (with_head(b"X: y\n" + DISPOSITION), "malformed"),
    "bare carriage return in a head": (with_head(b"X: y\r" + DISPOSITION), "malformed"),
    "NUL in a head": (with_head(DISPOSITION, b"X: \0"), "malformed"),
    "no colon": (with_head(DISPOSITION, b"X"), "malformed"),
    "bare line feed before a delimiter": (FILE[:-2] % b"z" + b"\n" + MODEL + END, "CR LF"),
    "bare carriage return before a delimiter": (FILE[:-2] % b"z" + b"\r" + MODEL + END, "CR LF"),
    "bare line feed after a delimiter": (MODEL.replace(b"--x\r\n", b"--x\n") + END, "goes on"),
    "delimiter that goes on": (FILE % b"z\r\n--xy" + MODEL + END, "goes on"),
    "end that goes on": (MODEL + END[:-2] + b"y", "goes on"),
    "many blanks": (MODEL + b"--x" + b" " * 300, "blanks"),
    "delimiter right behind a head": (with_head(DISPOSITION)[:-10] + MODEL + END, "CR LF"),
    "blank before the first delimiter": (b"\r\n\r\n " + MODEL + MODEL + END, "before the first part"),
    "no end": (MODEL, "last delimiter"),
    "end in a head": (MODEL + FILE[:50], "last delimiter"),
    "half an end": (MODEL + END[:-4] + b"-", "last delimiter"),
    "empty": (b"", "last delimiter"),
    "late model": (FILE % (b"z" * MODEL_WITHIN_BYTES) + MODEL + END, "first 65536 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_form_is_refused_wherever_it_is_cut(name: str) -> None:
    """What parsers read in different ways, or what can't be held, is an error that says what is wrong."""
    body, says = BAD[name]
    step = max(1, len(body) // 300)
    for pieces in ([body], [body[at : at + step] for at in range(0, len(body), step)]):
        with pytest.raises(InvalidRequest, match=says):
            read(pieces or [b""])


@pytest.mark.parametrize("offset", range(-3, 4))
def test_model_must_begin_within_64_kib(offset: int) -> None:
    """The delimiter before the field counts: at byte 65,536 it is in time, one later it is not."""
    fill = MODEL_WITHIN_BYTES - len(FILE % b"") + offset
    body = FILE % (b"z" * fill) + MODEL + END
    assert body.index(MODEL) == MODEL_WITHIN_BYTES + offset
    reader = FormReader(b"x")
    if offset <= 0:
        reader.feed(body)
        assert reader.model is not None
        return
    with pytest.raises(InvalidRequest, match="first 65536"):
        reader.feed(body)


def test_reader_knows_when_no_model_can_come() -> None:
    """So no more of a long form is read than decides it; but a head or a name that has begun is read to its end."""
    reader = FormReader(b"x")
    reader.feed(FILE[:-2] % (b"z" * 60_000))
    assert reader.model_may_come
    reader.feed(b"z" * 10_000)
    assert not reader.model_may_come
    reader = FormReader(b"x")
    reader.feed(FILE % (b"z" * 65_000) + MODEL[:-3])
    assert reader.model_may_come
    reader = FormReader(b"x")
    reader.feed(MODEL[:0] + FILE % b"" + END)
    assert not reader.model_may_come


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=x", b"x"),
        ('multipart/form-data; boundary="a b:c"', b"a b:c"),
        (
            "Multipart/Form-Data;charset=utf-8;BOUNDARY=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        (f"multipart/form-data; boundary={'x' * 70}", b"x" * 70),
        ("multipart/form-data; boundary", None),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ('multipart/form-data; boundary=""', None),
        ('multipart/form-data; boundary="x "', None),
        (f"multipart/form-data; boundary={'x' * 71}", None),
        ("multipart/form-data; boundary=x; boundary=y", None),
        ("multipart/form-data; boundary=x\u00e9", None),
        ('multipart/form-data; boundary="x', None),
        ("multipart/form-datax; boundary=x", UnsupportedBody),
        ("multipart/mixed; boundary=x", UnsupportedBody),
        ("application/json", UnsupportedBody),
        ("", UnsupportedBody),
    ],
)
def test_boundary(content_type: str, boundary: bytes | type[RouterError] | None) -> None:
    """1 to 70 characters, quoted or not (RFC 2046 section 5.1.1); another media type is not supported."""
    if isinstance(boundary, bytes):
        assert boundary_of(content_type) == boundary
    else:
        with pytest.raises(boundary or InvalidRequest):
            boundary_of(content_type)


def models_by_python_multipart(body: bytes) -> list[str] | None:
    """The values of `model` that the parser of FastAPI finds, None if it refuses the form."""
    found: list[str] = []

    def on_field(field: Any) -> None:
        if field.field_name == b"model":
            found.append((field.value or b"").decode(errors="replace"))

    def on_file(file: Any) -> None:
        if file.field_name == b"model":
            found.append("a file")

    headers = {"Content-Type": b"multipart/form-data; boundary=x", "Content-Length": str(len(body)).encode()}
    try:
        python_multipart.parse_form(headers, BytesIO(body), on_field, on_file)
    except python_multipart.exceptions.FormParserError:
        return None
    return found


def models_by_email(body: bytes) -> list[str]:
    """The values of `model` that Python's email parser finds."""
    message = email.message_from_bytes(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
    parts = message.get_payload() if message.is_multipart() else []
    return [
        str(part.get_payload(decode=True), errors="replace")  # type: ignore[arg-type]
        for part in parts
        if isinstance(part, email.message.Message)
        and part.get_param("name", header="Content-Disposition") == "model"
        and not part.is_multipart()
    ]


SNIPPETS = st.sampled_from(
    [
        *(MODEL, MODEL.replace(b"\r\nm", b"\r\nother"), FILE % b"z", END, b"--x", b"--x--", b"\r\n\r\n"),
        *(b"\r\n", b"\n", b"\r", b"-", b" ", b"x", b"z", b"; ", b'"', b"\\", b"\t", b":", b"\0", b"\xff", b"model"),
        *(b'Content-Disposition: form-data; name="', b"Content-Transfer-Encoding: base64\r\n"),
        *(b'name="model"', b"name*=utf-8''model", b"filename=a"),
    ]
)
PARTS = st.sampled_from([MODEL, MODEL, FILE % b"z", FILE % b"", FILE % b"--x", FILE % b"\n"])
BASES = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: b"".join(parts) + END)


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A form into which something was put at one or two places, or from which something was cut."""
    body: bytes = draw(BASES)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(SNIPPETS) + body[at + draw(st.sampled_from([0, 0, 1, 2])) :]
    return body


@pytest.mark.slow
@settings(max_examples=400)
@given(forms(), st.integers(1, 30))
@example(MODEL + MODEL.replace(b"\r\n", b"\n") + END, 5)
def test_no_form_names_one_model_here_and_another_one_elsewhere(body: bytes, step: int) -> None:
    """What passes names the model that the common parsers find, and once; and how it is cut changes nothing."""
    try:
        found = read([body])
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            read(body[at : at + step] for at in range(0, len(body), step))
        return
    assert read(body[at : at + step] for at in range(0, len(body), step)) == found
    if found is None:
        return
    assert models_by_python_multipart(body) in (None, [], [found])
    assert models_by_email(body) in ([], [found])


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.sampled_from(["file", "language", "prompt"]), st.binary(max_size=60)), max_size=4),
    st.integers(0, 4),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30),
)
def test_well_formed_form_names_what_common_parsers_find(parts: list[tuple[str, bytes]], at: int, name: str) -> None:
    """A form that a client library writes passes, and all agree on the model."""
    written = [
        f'--x\r\nContent-Disposition: form-data; name="{part}"\r\n\r\n'.encode() + value.replace(b"--x", b"") + b"\r\n"
        for part, value in parts
    ]
    written.insert(at, MODEL.replace(b"\r\nm\r", b"\r\n" + name.encode() + b"\r"))
    body = b"".join(written) + END
    assert read([body]) == name
    assert models_by_python_multipart(body) == [name]
