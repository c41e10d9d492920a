from typing import Any, TypeVar

from gunicorn.config import Config
from gunicorn.http.message import Request

class Response:
    cfg: Config
    status: str
    headers_sent: bool
    response_length: int | None
    chunked: bool
    def __init__(self, req: Request, sock: Any, cfg: Config) -> None: ...
    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any: ...
    def write(self, arg: bytes) -> None: ...
    def close(self) -> None: ...
    def should_close(self) -> bool: ...
    def force_close(self) -> None: ...
    def send_headers(self) -> None: ...

_R = TypeVar("_R", bound=Response)

def base_environ(cfg: Config) -> dict[str, Any]: ...
def create(
    req: Request,
    sock: Any,
    client: Any,
    server: Any,
    cfg: Config,
    response_class: type[_R] = ...,
    response_args: tuple[Any, ...] = (),
) -> tuple[_R, dict[str, Any]]: ...
