"""What the simulated model makes of texts besides more text: scores, classes, vectors and tokens.

A body that can't be used raises ValueError, a MsgspecError or RecursionError. Numbers follow from words and hashes, so
a document that has more words of the query has a higher score.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from app.http_fields import Headers
from app.simulated.text import embedding, whole

Task = Callable[[str, bytes], tuple[Headers, bytes]]
"""Takes the model's name and the body of a request."""

_Texts = str | Annotated[list[Any], Meta(min_length=1)]
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
"""What OpenAI's moderations tell apart."""
_MAX_MODEL_LEN = 131_072


class _Message(msgspec.Struct, frozen=True):
    content: Any = None


class _Inputs(msgspec.Struct, frozen=True):
    """One of these members, by any of the names that servers give them."""

    input: _Texts | None = None
    text: _Texts | None = None
    prompt: _Texts | None = None
    data: _Texts | None = None
    messages: list[_Message] | None = None

    def texts(self) -> list[str]:
        """Returns the texts, one by one."""
        for given in (self.input, self.text, self.prompt, self.data):
            if given is not None:
                return [given] if isinstance(given, str) else [_text_of(one) for one in given]
        if self.messages is None:
            raise ValueError("`input` is missing")
        return [" ".join(_text_of(message.content) for message in self.messages)]


class _Rerank(msgspec.Struct, frozen=True):
    query: Any
    documents: Annotated[list[Any], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0)] | None = None


class _Score(msgspec.Struct, frozen=True):
    """Two members, by any of the names that servers give them."""

    text_1: _Texts | None = None
    text_2: _Texts | None = None
    queries: _Texts | None = None
    documents: _Texts | None = None
    data_1: _Texts | None = None
    data_2: _Texts | None = None
    query: _Texts | None = None
    items: _Texts | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Returns what is compared with what: one with each of the others, or each with its counterpart."""
        firsts = _listed(self.text_1 or self.queries or self.data_1 or self.query, "text_1")
        seconds = _listed(self.text_2 or self.documents or self.data_2 or self.items, "text_2")
        firsts = firsts * len(seconds) if len(firsts) == 1 else firsts
        if len(firsts) != len(seconds):
            raise ValueError(f"{len(firsts)} texts can't be compared with {len(seconds)}")
        return list(zip(firsts, seconds, strict=True))


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[Annotated[int, Meta(ge=0, le=255)]]


def _listed(given: _Texts | None, name: str) -> list[str]:
    if given is None:
        raise ValueError(f"`{name}` is missing")
    return [given] if isinstance(given, str) else [_text_of(one) for one in given]


def _text_of(given: Any) -> str:
    """Returns the text of what may be one, a part with a `text`, a list of parts, or tokens."""
    if isinstance(given, list):
        return " ".join(map(_text_of, given))
    if isinstance(given, dict):
        return str(given.get("text") or "")
    return "" if given is None else str(given)


class _Words:
    """The words of texts. Each text is split once, however often it is compared: one may be megabytes long."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._words = {text: text.lower().split() for text in set(texts)}
        self._sets = {text: frozenset(words) for text, words in self._words.items()}

    def similarity(self, one: str, other: str) -> float:
        """Returns the share of words that two texts have in common, and a little that sets equal shares apart."""
        words, others = self._sets[one], self._sets[other]
        common = len(words & others)
        little = blake2b(other.encode(), digest_size=1).digest()[0] / 25_600
        return min(1.0, common / (len(words) + len(others) - common or 1) + little)

    def usage(self, texts: Iterable[str]) -> dict[str, int]:
        """Returns how many words these texts have."""
        tokens = sum(len(self._words[text]) for text in texts)
        return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def _head(prefix: str, name: str, body: bytes) -> dict[str, Any]:
    return {"id": prefix + blake2b(body, digest_size=12).hexdigest(), "object": "list", "created": 0, "model": name}


def _moderate(name: str, body: bytes) -> tuple[Headers, bytes]:
    texts = msgspec.json.decode(body, type=_Inputs).texts()
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {category: ["text"] for category in _CATEGORIES},
    }
    return whole({"id": _head("modr-", name, body)["id"], "model": name, "results": [result] * len(texts)})


def _rerank(name: str, body: bytes) -> tuple[Headers, bytes]:
    request = msgspec.json.decode(body, type=_Rerank)
    query, documents = _text_of(request.query), [_text_of(one) for one in request.documents]
    words = _Words([query, *documents])
    results: list[dict[str, Any]] = [
        {"index": at, "document": {"text": text}, "relevance_score": words.similarity(query, text)}
        for at, text in enumerate(documents)
    ]
    results.sort(key=lambda result: result["relevance_score"], reverse=True)
    most = request.top_n or len(results)
    usage = {"total_tokens": words.usage([query, *documents])["total_tokens"]}
    return whole({"id": _head("rerank-", name, body)["id"], "model": name, "usage": usage, "results": results[:most]})


def _score(name: str, body: bytes) -> tuple[Headers, bytes]:
    pairs = msgspec.json.decode(body, type=_Score).pairs()
    texts = [text for pair in pairs for text in pair]
    words = _Words(texts)
    data = [{"index": at, "object": "score", "score": words.similarity(*pair)} for at, pair in enumerate(pairs)]
    return whole({**_head("score-", name, body), "data": data, "usage": words.usage(texts)})


def _classify(name: str, body: bytes) -> tuple[Headers, bytes]:
    texts = msgspec.json.decode(body, type=_Inputs).texts()
    shares = [abs(embedding(text)[0]) for text in texts]
    data = [
        {"index": at, "label": f"LABEL_{int(share > 0.5)}", "probs": [1 - share, share], "num_classes": 2}
        for at, share in enumerate(shares)
    ]
    return whole({**_head("classify-", name, body), "data": data, "usage": _Words(texts).usage(texts)})


def _pool(name: str, body: bytes) -> tuple[Headers, bytes]:
    texts = msgspec.json.decode(body, type=_Inputs).texts()
    data = [{"index": at, "object": "pooling", "data": embedding(text)} for at, text in enumerate(texts)]
    return whole({**_head("pool-", name, body), "data": data, "usage": _Words(texts).usage(texts)})


def _tokenize(_: str, body: bytes) -> tuple[Headers, bytes]:
    """A token is a byte, so that tokens can be turned into text again."""
    tokens = list(" ".join(msgspec.json.decode(body, type=_Inputs).texts()).encode())
    return whole({"count": len(tokens), "max_model_len": _MAX_MODEL_LEN, "tokens": tokens, "token_strs": None})


def _detokenize(_: str, body: bytes) -> tuple[Headers, bytes]:
    tokens = msgspec.json.decode(body, type=_Tokens).tokens
    return whole({"prompt": bytes(tokens).decode(errors="replace")})


TASKS: dict[str, Task] = {
    "/v1/moderations": _moderate,
    "/v1/rerank": _rerank,
    "/rerank": _rerank,
    "/v2/rerank": _rerank,
    "/v1/score": _score,
    "/score": _score,
    "/v1/classify": _classify,
    "/pooling": _pool,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
}
"""The task of a POST to each path."""
