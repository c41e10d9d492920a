"""Servers and clients that nobody here wrote: KServe and LitServe behind the router, tritonclient and openai before it.

What holds without the router must hold with it, so many tests run twice: straight to the server, and through a router.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.late import Late
from tests.support.model_servers import LitServeOpenAI, SklearnServer
from tests.support.router import Router

if TYPE_CHECKING:
    import numpy as np
    import openai
else:
    np, openai = Late("numpy"), Late("openai")

triton: Any = Late("tritonclient.http")
triton_utils: Any = Late("tritonclient.utils")

pytestmark = pytest.mark.slow

Start = Callable[..., Router]
Connect = Callable[..., Any]

FLOWERS = [[5.1, 3.5, 1.4, 0.2], [5.9, 2.8, 4.3, 1.3], [6.5, 3.0, 5.8, 2.2]]
"""A typical flower of each species, in the order of the species' numbers."""


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SklearnServer]:
    """KServe, serving a scikit-learn model over v2."""
    with SklearnServer(tmp_path_factory.mktemp("kserve")) as server:
        yield server


@pytest.fixture(scope="module")
def litserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LitServeOpenAI]:
    """LitServe, serving chat."""
    with LitServeOpenAI(tmp_path_factory.mktemp("litserve")) as server:
        yield server


@pytest.fixture(params=["direct", "router"])
def iris_url(request: pytest.FixtureRequest, iris: SklearnServer, share: Start) -> str:
    """Where iris is asked: at KServe, or at a router before it."""
    if request.param == "direct":
        return iris.url
    return share(BACKENDS=iris.url, BACKEND_PROTOCOL="v2", MODEL_REF="iris").url


@pytest.fixture(scope="module")
def chat_routes(tmp_path_factory: pytest.TempPathFactory, litserve: LitServeOpenAI) -> Path:
    """A routes file with the model `tiny`, served by LitServe."""
    return routes_file(tmp_path_factory.mktemp("routes"), tiny(litserve.url))


@pytest.fixture(params=["direct", "router"])
def chat_url(request: pytest.FixtureRequest, litserve: LitServeOpenAI, share: Start, chat_routes: Path) -> str:
    """Where the model `tiny` is asked: at LitServe, or at a router before it."""
    if request.param == "direct":
        return litserve.url
    return share(ROUTES_FILE=chat_routes).url


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes a tritonclient for a URL; closed at the end of the test."""
    clients = []

    def client(url: str, **options: Any) -> Any:
        clients.append(triton.InferenceServerClient(url.removeprefix("http://"), **options))
        return clients[-1]

    yield client
    for made in clients:
        made.close()


def tiny(*urls: str) -> dict[str, Any]:
    """The route of the chat model `tiny` to these servers."""
    # LitServe has no /v1/models to be probed at.
    return {"name": "tiny", "protocol": "openai", "endpoints": [*urls], "health_check": {"path": "/readyz"}}


def routes_file(folder: Path, *models: dict[str, Any]) -> Path:
    """A routes file with these models."""
    path = folder / "routes.json"
    path.write_text(json.dumps({"models": models}))
    return path


def tensor(rows: object, datatype: str = "FP64", binary: bool = True) -> Any:
    """An input of iris."""
    array = np.array(rows, {"FP32": np.float32, "FP64": np.float64}[datatype])
    made = triton.InferInput("input-0", list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary)


def probabilities(client: Any, rows: object, datatype: str = "FP64", binary: bool = True) -> Any:
    """What iris answers to these flowers: a row each, a column for each species."""
    answer = client.infer(
        "iris",
        [tensor(rows, datatype, binary)],
        outputs=[triton.InferRequestedOutput("output-0", binary_data=binary)],
        # The client names no content type, and KServe takes only a binary body without one.
        headers=None if binary else {"Content-Type": "application/json"},
    )
    assert answer.get_response()["model_name"] == "iris"
    assert ("binary_data_size" in (answer.get_output("output-0")["parameters"] or {})) == binary
    return answer.as_numpy("output-0")


def openai_client(url: str) -> "openai.OpenAI":
    """A client that doesn't hide a failure by trying again."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def chat(prompt: str) -> dict[str, Any]:
    """The arguments of a chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}


def test_tensors_are_not_altered(iris: SklearnServer, iris_url: str, connect: Connect) -> None:
    """Both float types, binary and JSON: the same numbers as from the server itself, and they are the model's."""
    direct, asked = connect(iris.url), connect(iris_url)
    for datatype in ("FP32", "FP64"):
        for binary in (True, False):
            answer = probabilities(asked, FLOWERS, datatype, binary)
            assert answer.dtype == np.float64
            assert answer.argmax(axis=1).tolist() == [0, 1, 2]
            np.testing.assert_array_equal(answer, probabilities(direct, FLOWERS, datatype, binary))


def test_a_large_tensor_arrives_whole(iris: SklearnServer, iris_url: str, connect: Connect) -> None:
    """Half a megabyte each way, in many pieces, is complete and in order."""
    rows = np.random.default_rng(seed=1).uniform(0.1, 8, (20_000, 4))
    answer = probabilities(connect(iris_url), rows)
    assert answer.shape == (20_000, 3)
    np.testing.assert_array_equal(answer, probabilities(connect(iris.url), rows))


def test_concurrent_tensors_are_not_mixed_up(iris: SklearnServer, iris_url: str, connect: Connect) -> None:
    """Each of several requests at once gets the answer to its own flower, on connections that are used again."""
    direct, asked = connect(iris.url), connect(iris_url, concurrency=4)
    flowers = [[[5 + 0.1 * n, 3.0, 1 + 0.4 * n, 0.2 * n]] for n in range(12)]
    under_way = [asked.async_infer("iris", [tensor(flower)]) for flower in flowers]
    answers = [answer.get_result().as_numpy("output-0") for answer in under_way]
    np.testing.assert_array_equal(answers, [probabilities(direct, flower) for flower in flowers])
    assert len({answer.tobytes() for answer in answers}) == len(flowers)


def test_health_and_metadata(iris: SklearnServer, iris_url: str, connect: Connect) -> None:
    """The server is live, the model is ready and described as by its own server, and no other model is there."""
    asked = connect(iris_url)
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.get_server_metadata()["name"]
    assert asked.is_model_ready("iris")
    assert asked.get_model_metadata("iris")["name"] == "iris"
    assert asked.get_model_metadata("iris") == connect(iris.url).get_model_metadata("iris")
    assert not asked.is_model_ready("rose")
    with pytest.raises(triton_utils.InferenceServerException) as raised:
        asked.infer("rose", [tensor(FLOWERS)])
    assert raised.value.status() == "404"


def test_the_servers_own_error_comes_through(iris_url: str, connect: Connect) -> None:
    """Flowers with too few numbers: the client is told so by the model's own words, and whoever asks next is served.

    After such an error KServe closes the connection, and has not said that it would.
    """
    for _ in range(3):
        with pytest.raises(triton_utils.InferenceServerException, match="3 features") as raised:
            connect(iris_url).infer("iris", [tensor([[5.1, 3.5, 1.4]])])
        assert raised.value.status() == "500"
        assert probabilities(connect(iris_url), FLOWERS).shape == (3, 3)


def test_chat(chat_url: str) -> None:
    """A plain chat request gets the server's text, whole."""
    with openai_client(chat_url) as client:
        answer = client.chat.completions.create(**chat("one two three"))
    assert answer.model == "tiny"
    assert answer.choices[0].message.content == "litserve heard: one two three"
    assert answer.choices[0].finish_reason == "stop"


def test_chat_streams_word_by_word(chat_url: str, litserve: LitServeOpenAI) -> None:
    """The deltas are the text, and each arrives when the server has made it: it makes the next one only then."""
    holds = [litserve.hold(word) for word in range(5)]
    for hold in holds:
        hold.touch()
    words, finished = [], []
    try:
        with (
            openai_client(chat_url) as client,
            client.chat.completions.create(**chat("one two three"), stream=True) as events,
        ):
            for event in events:
                if event.choices[0].delta.content:
                    words.append(event.choices[0].delta.content)
                    holds.pop(0).unlink()
                finished.append(event.choices[0].finish_reason)
    finally:
        for hold in holds:
            hold.unlink()
    assert "".join(words) == "litserve heard: one two three"
    assert finished == [None] * 5 + ["stop"]


def test_an_abandoned_stream_costs_nobody_anything(chat_url: str) -> None:
    """A client that leaves in the middle of a stream can ask again, and gets a whole answer."""
    with openai_client(chat_url) as client:
        with client.chat.completions.create(**chat("one two three"), stream=True) as events:
            assert next(iter(events)).choices[0].delta.content == "litserve"
        answer = client.chat.completions.create(**chat("four"))
    assert answer.choices[0].message.content == "litserve heard: four"


async def ask_at_once(url: str, prompts: list[str]) -> list[str]:
    """The answers to all prompts, asked at the same time, every other one streaming."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def ask(prompt: str, stream: bool) -> str:
            if not stream:
                answer = await client.chat.completions.create(**chat(prompt))
                return answer.choices[0].message.content or ""
            events = await client.chat.completions.create(**chat(prompt), stream=True)
            return "".join([event.choices[0].delta.content or "" async for event in events])

        return await asyncio.gather(*(ask(prompt, at % 2 == 0) for at, prompt in enumerate(prompts)))


def test_concurrent_chats(chat_url: str) -> None:
    """Ten at once, half of them streaming: each is answered, and with the answer to its own prompt."""
    prompts = [f"number {n}" for n in range(10)]
    assert asyncio.run(ask_at_once(chat_url, prompts)) == [f"litserve heard: {prompt}" for prompt in prompts]


def test_chats_are_spread_over_both_servers(litserve: LitServeOpenAI, start: Start, tmp_path: Path) -> None:
    """Sixteen at once for one model of two servers, LitServe and a simulated one: both answer some, each its own."""
    simulated = start(MODEL_REF="tiny", SIMULATED_LATENCY_MS=50, MAX_CONCURRENCY=16)
    path = routes_file(tmp_path, tiny(litserve.url, simulated.url))
    router = start(ROUTES_FILE=path, MAX_CONCURRENCY=16)
    prompts = [f"number {n}" for n in range(16)]
    answers = asyncio.run(ask_at_once(router.url, prompts))
    assert [answer.removeprefix("litserve heard: ") for answer in answers] == prompts
    by_litserve = sum(answer.startswith("litserve heard: ") for answer in answers)
    assert 0 < by_litserve < 16


def test_models_embeddings_and_an_unknown_model(litserve: LitServeOpenAI, start: Start, tmp_path: Path) -> None:
    """The client lists the models of the routes, gets vectors of one that makes them, and its own error for none."""
    path = routes_file(tmp_path, tiny(litserve.url), {"name": "vectors", "protocol": "simulated"})
    with openai_client(start(ROUTES_FILE=path).url) as client:
        assert {model.id for model in client.models.list()} == {"tiny", "vectors"}
        assert client.models.retrieve("tiny").id == "tiny"
        first, other, again = client.embeddings.create(model="vectors", input=["a", "b", "a"]).data
        assert len(first.embedding) > 0
        assert first.embedding == again.embedding != other.embedding
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(**{**chat("one"), "model": "nobody"})
        assert raised.value.code == "model_not_found"
        assert client.chat.completions.create(**chat("one")).choices[0].message.content == "litserve heard: one"
