"""OpenAI's own client, sync and async, for responses and for what takes a file, against the simulated model."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.late import Late
from tests.support.router import Router

if TYPE_CHECKING:
    import openai
else:
    openai = Late("openai")

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
MODEL = "simulated"
WORDS = "one two three"
AUDIO = b"\0" * 300_000
OPTIONS: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 30}


@pytest.fixture
def url(share: Start) -> str:
    """The address of OpenAI's API at a router with two workers, so that a request may meet either."""
    return f"{share(SIMULATED_LATENCY_MS=0, WEB_CONCURRENCY=2).url}/v1"


@pytest.fixture
def client(url: str) -> "Iterator[openai.OpenAI]":
    """The sync client."""
    with openai.OpenAI(base_url=url, **OPTIONS) as client:
        yield client


@asynccontextmanager
async def async_client(url: str) -> "AsyncIterator[openai.AsyncOpenAI]":
    """The async client."""
    async with openai.AsyncOpenAI(base_url=url, **OPTIONS) as client:
        yield client


def test_responses(client: "openai.OpenAI") -> None:
    """Create, follow, retrieve, list the input, cancel, delete: all that the client has, on whichever worker."""
    made = client.responses.create(model=MODEL, input=WORDS)
    assert (made.output_text, made.status) == (WORDS, "completed")
    assert made.usage is not None
    assert made.usage.output_tokens == 3
    following = client.responses.create(model=MODEL, input="four", previous_response_id=made.id)
    assert following.previous_response_id == made.id
    for response_id in (made.id, following.id):
        assert client.responses.retrieve(response_id).id == response_id
        assert [item.type for item in client.responses.input_items.list(response_id)] == ["message"]
        assert client.responses.cancel(response_id).status == "cancelled"
        client.responses.delete(response_id)
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.retrieve("resp_unknown")
    assert raised.value.code == "response_not_found"


def test_responses_are_compacted_and_their_tokens_counted(client: "openai.OpenAI") -> None:
    """Both continue a conversation, and neither is taken for a request about a response of that name."""
    made = client.responses.create(model=MODEL, input=WORDS)
    compacted = client.responses.compact(model=MODEL, input=WORDS, previous_response_id=made.id)
    assert [item.type for item in compacted.output] == ["compaction"]
    assert compacted.usage.input_tokens == len(WORDS.split())
    counted = client.responses.input_tokens.count(model=MODEL, input=WORDS, previous_response_id=made.id)
    assert counted.input_tokens == len(WORDS.split())


def test_responses_as_a_stream(client: "openai.OpenAI") -> None:
    """The events of a stream come to the whole text, by the plain call and by the helper; the id can be used."""
    events = list(client.responses.create(model=MODEL, input=WORDS, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(model=MODEL, input=WORDS) as stream:
        final = stream.get_final_response()
    assert final.output_text == WORDS
    assert client.responses.retrieve(final.id).id == final.id


def test_async_responses(url: str) -> None:
    """The same by the async client."""

    async def run() -> None:
        async with async_client(url) as client:
            made = await client.responses.create(model=MODEL, input=WORDS)
            stream = await client.responses.create(model=MODEL, input=f"{WORDS} four", stream=True)
            text = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert "".join(text) == f"{WORDS} four"
            assert (await client.responses.retrieve(made.id)).id == made.id
            assert [item.type async for item in client.responses.input_items.list(made.id)] == ["message"]
            assert (await client.responses.cancel(made.id)).status == "cancelled"
            await client.responses.delete(made.id)

    asyncio.run(run())


def said(text: str) -> int:
    """How many bytes of a form the simulated model has read, by its text."""
    found = re.search(r"A form of (\d+) bytes\.", text)
    assert found, text
    return int(found[1])


def test_transcriptions(client: "openai.OpenAI") -> None:
    """In every format, and as a stream; the file arrives whole."""
    create = client.audio.transcriptions.create
    file = ("speech.wav", AUDIO)
    assert said(create(model=MODEL, file=file).text) > len(AUDIO)
    assert create(model=MODEL, file=file, response_format="verbose_json", language="en").language == "en"
    for response_format in ("text", "srt", "vtt"):
        assert said(create(model=MODEL, file=file, response_format=response_format)) > len(AUDIO)
    events = list(create(model=MODEL, file=file, stream=True))
    text = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert said(text) > len(AUDIO)
    assert events[-1].type == "transcript.text.done"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translations_and_edits(client: "openai.OpenAI") -> None:
    """A file that is read from a stream, and several files in one form."""
    assert said(client.audio.translations.create(model=MODEL, file=BytesIO(AUDIO)).text) > len(AUDIO)
    images = [("a.png", AUDIO), ("b.png", AUDIO)]
    edited = client.images.edit(model=MODEL, image=images, mask=("m.png", AUDIO), prompt="blue")
    assert edited.data is not None
    assert edited.data[0].b64_json


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_async_files(url: str) -> None:
    """The same by the async client, several at once."""

    async def run() -> None:
        async with async_client(url) as client:
            create = client.audio.transcriptions.create
            file = ("speech.wav", AUDIO)
            made = await asyncio.gather(*(create(model=MODEL, file=file) for _ in range(5)))
            assert all(said(one.text) > len(AUDIO) for one in made)
            stream = await create(model=MODEL, file=file, stream=True)
            assert [event.type async for event in stream][-1] == "transcript.text.done"
            assert said((await client.audio.translations.create(model=MODEL, file=file)).text) > len(AUDIO)
            assert (await client.images.edit(model=MODEL, image=file, prompt="blue")).data

    asyncio.run(run())


def test_form_of_no_model_and_of_an_unknown_one(client: "openai.OpenAI") -> None:
    """The client's own exceptions, with the router's codes."""
    with pytest.raises(openai.NotFoundError) as raised:
        client.audio.transcriptions.create(model="nobody", file=("a", AUDIO))
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="field `model`"):
        client.images.edit(image=("a", AUDIO), prompt="blue")
