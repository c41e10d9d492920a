"""Reading a request body: within the limit, and before a permit is taken."""

import falcon
from gunicorn.http.errors import ParseException

from app.errors import BodyStalled, BodyTooLarge, ClientGone, InvalidRequest, UnsupportedBody


def read_body(req: falcon.Request, limit: int) -> bytes:
    """Returns the whole body. A declared length over `limit` is an error at once, a chunked body as soon as it is over.

    Raises UnsupportedBody for multipart, BodyTooLarge, BodyStalled, or InvalidRequest for chunks that are malformed.
    Where the body ends early, or its connection breaks, the client has left: ClientGone.
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
        raise ClientGone("the connection broke while the body was read") from error
    if len(body) > limit:
        raise BodyTooLarge(f"the body has more than {limit} bytes, the most that is accepted")
    if length is not None and len(body) < length:
        raise ClientGone(f"the body ended after {len(body)} of {length} bytes")
    return body
