"""Reading a request body: within the limit, before a permit is taken, as JSON whatever its declared type."""

from typing import Any

import falcon
import msgspec
from gunicorn.http.errors import ParseException

from app.errors import BodyStalled, BodyTooLarge, InvalidRequest, UnsupportedBody

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def read_body(req: falcon.Request, limit: int) -> bytes:
    """The whole body. A declared length over `limit` is refused unread, a chunked body as soon as it exceeds it.

    Raises UnsupportedBody for multipart, BodyTooLarge, BodyStalled, or InvalidRequest for a body that ends early.
    """
    if (req.content_type or "").lower().startswith("multipart/"):
        raise UnsupportedBody("multipart bodies are not accepted; send JSON")
    length = req.content_length
    if length is not None and length > limit:
        raise BodyTooLarge(f"the body has {length} bytes; at most {limit} are accepted")
    try:
        # The server's own stream: Falcon's bounded one takes a chunked body for an empty one.
        body: bytes = req.env["wsgi.input"].read(limit + 1 if length is None else length)
    except ParseException as error:
        raise InvalidRequest(f"the chunked body is malformed: {error}") from error
    except TimeoutError as error:
        raise BodyStalled("the body did not arrive in time; see STALL_TIMEOUT_S and UPLOAD_TIMEOUT_S") from error
    except OSError as error:
        raise InvalidRequest("the connection broke while the body was read") from error
    if len(body) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes, the most that is accepted")
    if length is not None and len(body) < length:
        raise InvalidRequest(f"the body ended after {len(body)} of {length} bytes")
    return body


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidRequest, saying where it is wrong."""
    if not body:
        raise InvalidRequest("the body is empty; send a JSON object")
    try:
        return _decode_object(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is not a JSON object that can be read: it is nested too deeply") from error
