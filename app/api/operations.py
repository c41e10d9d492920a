"""The operations at one path, each with what handles its kind."""

from collections.abc import Callable, Iterable
from functools import partial

import falcon
from gevent import GreenletExit

from app.api import forms, responses
from app.api.dispatch import Dispatcher
from app.errors import CutOff
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
            setattr(self, f"on_{operation.method.lower()}", partial(_handle, handle))


def _handle(handle: Callable[..., None], req: falcon.Request, resp: falcon.Response, /, **params: str) -> None:
    """Handle a request. One that a drain no longer waits for is still told so: its greenlet has a second to go on.

    A drain stops a greenlet once, by a GreenletExit, of which Falcon makes no response.
    """
    try:
        handle(req, resp, **params)
    except GreenletExit:
        raise CutOff("the router stops, and waits no longer for this request") from None
