"""The clients that people use, against the simulated model: each operation that they have and the router serves.

They run as they are installed; what they make of a response is what their users see.
"""

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.support.late import Late
from tests.support.router import Router

if TYPE_CHECKING:
    import anthropic
    import openai
else:
    anthropic, openai = Late("anthropic"), Late("openai")

triton: Any = Late("tritonclient.http")
triton_utils: Any = Late("tritonclient.utils")

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
MODEL = "m"
OPTIONS: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 30}
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 9,
    "system": "be brief",
    "messages": [{"role": "user", "content": "one two three"}],
}


@pytest.fixture
def url(share: Start) -> str:
    """Where the simulated model is served."""
    return share(MODEL_REF=MODEL, SIMULATED_LATENCY_MS=0, WEB_CONCURRENCY=1).url


@pytest.fixture
def of_openai(url: str) -> "Iterator[openai.OpenAI]":
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{url}/v1", **OPTIONS) as client:
        yield client


@pytest.fixture
def of_anthropic(url: str) -> "Iterator[anthropic.Anthropic]":
    """Anthropic's client."""
    with anthropic.Anthropic(base_url=url, **OPTIONS) as client:
        yield client


@pytest.fixture
def of_triton(url: str) -> Iterator[Any]:
    """Triton's client."""
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a test's coroutine."""
    return asyncio.run(coroutine)


async def gathered(events: AsyncIterator[Any]) -> list[Any]:
    """Every event of a stream."""
    return [event async for event in events]


def test_openai_moderations(of_openai: "openai.OpenAI") -> None:
    """One result for each input."""
    answer = of_openai.moderations.create(model=MODEL, input=["a", "b"])
    assert [result.flagged for result in answer.results] == [False, False]
    assert answer.results[0].categories.violence is False
    assert answer.model == MODEL


def test_openai_images(of_openai: "openai.OpenAI") -> None:
    """As many images as are asked for; with `stream`, partial ones and the whole one as events."""
    answer = of_openai.images.generate(model=MODEL, prompt="a dot", n=2)
    assert answer.data is not None
    assert [base64.b64decode(image.b64_json or "")[1:4] for image in answer.data] == [b"PNG"] * 2
    events = list(of_openai.images.generate(model=MODEL, prompt="a dot", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert events[0].b64_json == answer.data[0].b64_json


def test_openai_speech(of_openai: "openai.OpenAI") -> None:
    """The bytes of a sound come whole, or in pieces."""
    heard = of_openai.audio.speech.create(model=MODEL, voice="alloy", input="one two", response_format="wav").read()
    with wave.open(io.BytesIO(heard)) as sound:
        assert sound.getnframes() == 2 * 2400
    options: dict[str, Any] = {"model": MODEL, "voice": "alloy", "input": "one two"}
    with of_openai.audio.speech.with_streaming_response.create(**options) as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        assert b"".join(answer.iter_bytes()).startswith(b"\xff\xfb")
    with of_openai.audio.speech.with_streaming_response.create(**options, stream_format="sse") as answer:
        lines = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert [line["type"] for line in lines] == ["speech.audio.delta"] * 2 + ["speech.audio.done"]


def test_openai_asynchronously(url: str) -> None:
    """The same operations of the asynchronous client."""

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as client:
            moderation, image, speech = await asyncio.gather(
                client.moderations.create(model=MODEL, input="a"),
                client.images.generate(model=MODEL, prompt="a dot"),
                client.audio.speech.create(model=MODEL, voice="alloy", input="one"),
            )
            assert len(moderation.results) == len(image.data or ()) == 1
            assert speech.content.startswith(b"\xff\xfb")
            events = await gathered(await client.images.generate(model=MODEL, prompt="a dot", stream=True))
            assert [event.type for event in events] == ["image_generation.completed"]

    run(ask())


def test_openai_errors(of_openai: "openai.OpenAI") -> None:
    """An unknown model is the client's own exception, with the code, at the new paths as at the old ones."""
    for ask in (
        lambda: of_openai.moderations.create(model="nobody", input="a"),
        lambda: of_openai.images.generate(model="nobody", prompt="a"),
        lambda: of_openai.audio.speech.create(model="nobody", voice="alloy", input="a"),
    ):
        with pytest.raises(openai.NotFoundError) as raised:
            ask()
        assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        of_openai.audio.speech.create(model=MODEL, voice="alloy", input="a", response_format="opus")


def test_anthropic_messages(of_anthropic: "anthropic.Anthropic") -> None:
    """A message is whole, with its tokens counted, and ends as it should."""
    answer = of_anthropic.messages.create(**QUESTION)
    assert [block.text for block in answer.content if block.type == "text"] == ["one two three"]
    assert (answer.model, answer.role, answer.stop_reason) == (MODEL, "assistant", "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)
    cut = of_anthropic.messages.create(**{**QUESTION, "max_tokens": 2})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    counted = of_anthropic.messages.count_tokens(**{name: QUESTION[name] for name in ("model", "system", "messages")})
    assert counted.input_tokens == 5


def test_anthropic_streams(of_anthropic: "anthropic.Anthropic") -> None:
    """Both ways of streaming give the text in pieces, and the second the same message as without streaming."""
    kinds = [event.type for event in of_anthropic.messages.create(**QUESTION, stream=True)]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    with of_anthropic.messages.stream(**QUESTION) as stream:
        assert list(stream.text_stream) == ["one", " two", " three"]
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 5, 3)


def test_anthropic_asynchronously(url: str) -> None:
    """The same operations of the asynchronous client."""

    async def ask() -> None:
        async with anthropic.AsyncAnthropic(base_url=url, **OPTIONS) as client:
            answer = await client.messages.create(**QUESTION)
            assert answer.usage.output_tokens == 3
            events = await gathered(await client.messages.create(**QUESTION, stream=True))
            assert events[-1].type == "message_stop"
            async with client.messages.stream(**QUESTION) as stream:
                assert await gathered(stream.text_stream) == ["one", " two", " three"]
            counted = await client.messages.count_tokens(model=MODEL, messages=QUESTION["messages"])
            assert counted.input_tokens == 3

    run(ask())


def test_anthropic_errors(of_anthropic: "anthropic.Anthropic") -> None:
    """The router's errors are the client's own exceptions, with the type that Anthropic gives them."""
    for changed, kind, name in (
        ({"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": 5}, anthropic.BadRequestError, "invalid_request_error"),
    ):
        with pytest.raises(kind) as raised:
            of_anthropic.messages.create(**{**QUESTION, **changed})
        body = raised.value.body
        assert isinstance(body, dict)
        assert (body["type"], body["error"]["type"]) == ("error", name)
    with pytest.raises(anthropic.NotFoundError):  # what the router has not is a 404 that the client can read
        of_anthropic.messages.batches.list()


def test_triton(of_triton: Any) -> None:
    """Configuration, statistics and index are what Triton's client expects."""
    assert of_triton.get_model_config(MODEL)["name"] == MODEL
    assert of_triton.get_model_config(MODEL, "1")["input"][0]["data_type"] == "TYPE_STRING"
    (of_one,) = of_triton.get_inference_statistics(MODEL, "1")["model_stats"]
    assert (of_one["name"], of_one["version"]) == (MODEL, "1")
    assert [model["name"] for model in of_triton.get_inference_statistics()["model_stats"]] == [MODEL]
    (entry,) = of_triton.get_model_repository_index()
    assert entry == {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    for ask in (of_triton.get_model_config, of_triton.get_inference_statistics):
        with pytest.raises(triton_utils.InferenceServerException) as raised:
            ask("nobody")
        assert raised.value.status() == "404"


def test_triton_generates(url: str) -> None:
    """Text comes whole, or word by word in events."""
    body = {"text_input": "one two", "parameters": {"max_tokens": 3}}
    for path in (f"/v2/models/{MODEL}/generate", f"/v2/models/{MODEL}/versions/1/generate"):
        assert requests.post(url + path, json=body, timeout=10).json()["text_output"] == "one two one"
        events = requests.post(f"{url}{path}_stream", json=body, timeout=10)
        assert events.headers["content-type"] == "text/event-stream"
        pieces = [json.loads(line[6:])["text_output"] for line in events.text.splitlines() if line]
        assert pieces == ["one", " two", " one"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_rerank(url: str, path: str) -> None:
    """The documents that have most of the query come first, no more than are asked for."""
    body = {"model": MODEL, "query": "red fox", "documents": ["a cat", "a red fox", {"text": "a fox"}], "top_n": 2}
    results = requests.post(url + path, json=body, timeout=10).json()["results"]
    assert [(result["index"], result["document"]["text"]) for result in results] == [(1, "a red fox"), (2, "a fox")]
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("/v1/score", {"text_1": "a b", "text_2": ["a b", "c"]}, lambda answer: len(answer["data"]) == 2),
        ("/score", {"queries": ["a", "b"], "documents": ["a", "b"]}, lambda answer: len(answer["data"]) == 2),
        ("/v1/classify", {"input": ["a", "b"]}, lambda answer: sum(answer["data"][1]["probs"]) == 1),
        ("/pooling", {"input": "a"}, lambda answer: len(answer["data"][0]["data"]) == 8),
        ("/tokenize", {"prompt": "Hi"}, lambda answer: (answer["count"], answer["tokens"]) == (2, [72, 105])),
        ("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}, lambda answer: answer["count"] == 2),
        ("/detokenize", {"tokens": [72, 105]}, lambda answer: answer == {"prompt": "Hi"}),
    ],
)
def test_texts_become_numbers(url: str, path: str, body: dict[str, Any], found: Callable[[Any], bool]) -> None:
    """What vLLM and SGLang serve for pooling models and tokenizers has the form that they give it."""
    answer = requests.post(url + path, json={"model": MODEL, **body}, timeout=10)
    assert (answer.status_code, found(answer.json())) == (200, True), answer.text
