"""The operations at one path, each with what handles its kind."""

from collections.abc import Callable, Iterable
from functools import partial

from app.api import forms, responses
from app.api.dispatch import Dispatcher
from app.protocols.interfaces import Kind, Operation, ProtocolAdapter

_HANDLERS: dict[Kind, Callable[..., None]] = {
    Kind.ORDINARY: Dispatcher.handle,
    Kind.FORM: forms.handle,
    Kind.CREATES_RESPONSE: responses.create,
    Kind.ABOUT_RESPONSE: responses.refer,
}


class OperationResource:
    """The operations at one path."""

    def __init__(
        self, dispatcher: Dispatcher, adapter: ProtocolAdapter | None, operations: Iterable[Operation]
    ) -> None:
        for operation in operations:
            handle = partial(_HANDLERS[operation.kind], dispatcher, adapter, operation)
            setattr(self, f"on_{operation.method.lower()}", handle)
