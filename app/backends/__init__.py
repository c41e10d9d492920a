"""Model servers: what the router asks of one."""

from typing import Any, NamedTuple, Protocol


class Inference(NamedTuple):
    """One request to a model."""

    prompt: str
    options: dict[str, Any]
    """The other members of the request body, as the client gave them."""


class Model(Protocol):
    """A model, as the router sees it. `infer` runs with a permit held and may be interrupted by `ClientGone`."""

    ref: str

    def infer(self, request: Inference) -> None:
        """Serve the request; return when the model has answered."""

    def unusable(self) -> str | None:
        """Why requests can't be served now, in a few words, or None when they can."""
