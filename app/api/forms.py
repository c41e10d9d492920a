"""Forms with a file: the beginning is read for the field `model`, and the rest passes on as it arrives.

The permit is taken before the rest is read. To read it first, the router would have to keep it: in memory, or on a disk
that it may not have. So an upload holds a permit while it arrives, as a response does while the client reads it. It
ends like one: a client that pauses for STALL_TIMEOUT_S is cut off, all of the body has UPLOAD_TIMEOUT_S, and a client
that leaves is noticed at once. The model server takes the bytes at its own speed, and what it has not taken is not read
from the client: the router holds one piece at a time.
"""

from typing import Any

import falcon
from gunicorn.http.errors import ParseException

from app.api.dispatch import Dispatcher
from app.errors import BodyStalled, BodyTooLarge, ClientGone, InvalidRequest, UnsupportedBody
from app.native import monotonic
from app.protocols.interfaces import ClientRequest, FormHead, Operation, ProtocolAdapter
from app.protocols.multipart import FORM, MODEL_WITHIN_BYTES, NO_MODEL, FormReader, boundary_of

_PIECE_BYTES = 1 << 16
_STALLED = "the body did not arrive in time; see STALL_TIMEOUT_S and UPLOAD_TIMEOUT_S"


def handle(
    dispatcher: Dispatcher,
    adapter: ProtocolAdapter,
    operation: Operation,
    req: falcon.Request,
    resp: falcon.Response,
    /,
    **params: str,
) -> None:
    """Serve a request whose body is a form."""
    exchange = dispatcher.begin(operation, req)
    body, form = read_form(req, dispatcher.max_upload_bytes)
    request = operation.parse(ClientRequest(operation, params, req.query_string, req.get_header, body, form))
    model = dispatcher.resolve(exchange, adapter, form.model)
    # What has arrived is gone once it was sent: another model could not get it.
    dispatcher.serve(req, resp, request, model, len(body), falls_back=form.rest is None)


def read_form(req: falcon.Request, limit: int) -> tuple[bytes, FormHead]:
    """Read a form up to its field `model`. Returns what was read, and what is known of the form.

    Raises UnsupportedBody, BodyTooLarge, BodyStalled, or InvalidRequest for a form that is malformed or has no model in
    its first `MODEL_WITHIN_BYTES`.
    """
    reader = FormReader(boundary_of(req.content_type or ""))
    encoding = req.get_header("Content-Encoding") or "identity"
    if encoding.strip().lower() != "identity":
        raise UnsupportedBody(f"the body has Content-Encoding {encoding!r}; send it uncompressed", accepts=FORM)
    upload = Upload(req.env, req.content_length, limit, reader)
    pieces, size = [], 0
    # A form that ends within these bytes is read whole, and is then a body like any other.
    while not upload.ended_at and (size < MODEL_WITHIN_BYTES or (reader.model is None and reader.model_may_come)):
        pieces.append(upload.read())
        size += len(pieces[-1])
    model = reader.model
    if model is None:
        raise InvalidRequest(NO_MODEL)
    return b"".join(pieces), FormHead(model.name, model.begin, model.end, None if upload.ended_at else upload)


class Upload:
    """A `BodyStream`: the body of a request that is a form, read by the piece, each of them checked."""

    def __init__(self, environ: dict[str, Any], length: int | None, limit: int, reader: FormReader) -> None:
        if length is not None and length > limit:
            raise BodyTooLarge(f"the body has {length} bytes; at most {limit} are accepted")
        self._input: Any = environ["wsgi.input"]  # the server's own: Falcon's takes a chunked body for an empty one
        self._connection: Any = environ.get("gunicorn.socket")
        self._limit = limit
        self._had = 0
        self._reader = reader
        self._read_at = 0.0
        self.length = length
        self.begun = False
        self.ended_at = 0.0 if length != 0 else monotonic()

    def __repr__(self) -> str:
        state = "ended" if self.ended_at else "begun" if self.begun else "not begun"
        return f"<Upload {state}, {self._had} bytes of at most {self._limit}>"

    def receive(self, other: int, within_s: float) -> bytes | None:
        """See BodyStream."""
        if self.ended_at:
            return b""
        if not self.begun and self._connection is not None:
            # The client could not send while its request waited for a permit and a connection.
            self._connection.postpone_read_deadline(monotonic() - self._read_at)
            self._read_at = monotonic()
        try:
            if not self._input.is_ready_before(other, within_s):
                return None
        except TimeoutError as error:
            raise BodyStalled(_STALLED) from error
        self.begun = True
        piece = self.read()
        return piece if self.length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)

    def read(self) -> bytes:
        """See BodyStream."""
        if self.ended_at:
            return b""
        try:
            piece: bytes = self._input.read1(_PIECE_BYTES)
        except ParseException as error:
            raise InvalidRequest(f"the chunked body is malformed: {error}") from error
        except TimeoutError as error:
            raise BodyStalled(_STALLED) from error
        except OSError as error:
            raise ClientGone("the connection broke while the body was read") from error
        self._had += len(piece)
        if self._had > self._limit:
            raise BodyTooLarge(f"the body has more than {self._limit} bytes, the most that is accepted")
        if self.length is not None:
            if not piece:
                raise ClientGone(f"the body ended {self.length} bytes too early")
            self.length -= len(piece)
        self._reader.feed(piece)
        self._read_at = monotonic()
        if not piece or self.length == 0:
            self._reader.end()  # if it raises, the model server never gets the end either
            self.ended_at = self._read_at
        return piece
