from typing import Any

class Body:
    reader: Any
    failed: bool
    def read(self, size: int | None = None) -> bytes: ...

class Request:
    method: str
    path: str
    body: Body
    proxy_protocol_info: Any
    _expected_100_continue: bool
    def should_close(self) -> bool: ...
