from typing import Any

from gunicorn.http.body import Body as Body

DEFAULT_MAX_HEADERFIELD_SIZE: int
MAX_HEADERS: int
MAX_REQUEST_LINE: int

class Request:
    method: str
    uri: str
    path: str
    version: tuple[int, int]
    headers: list[tuple[str, str]]
    body: Body
    unreader: Any
    must_close: bool
    limit_request_line: int
    limit_request_fields: int
    limit_request_field_size: int
    proxy_protocol_info: Any
    _expected_100_continue: bool
    def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None: ...
    def parse(self, unreader: Any) -> bytes: ...
    def _parse_python(self, unreader: Any, buf: bytearray) -> bytes: ...
    def _parse_proxy_protocol_v1(self, unreader: Any, buf: bytearray) -> bytearray: ...
    def parse_request_line(self, line_bytes: bytes) -> None: ...
    def read_into(self, unreader: Any, buf: bytearray, stop: bool = False) -> None: ...
    def set_body_reader(self) -> None: ...
    def should_close(self) -> bool: ...
