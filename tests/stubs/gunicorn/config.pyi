from collections.abc import Callable
from typing import Any

class Setting:
    default: Any
    def get(self) -> Any: ...

class Config:
    settings: dict[str, Setting]
    env_orig: dict[str, str]
    protocol: str
    is_ssl: bool
    proxy_protocol: str
    limit_request_line: int
    limit_request_fields: int
    limit_request_field_size: int
    secure_scheme_headers: dict[str, str]
    forwarded_allow_ips: list[str]
    keepalive: int
    graceful_timeout: int
    workers: int
    pre_request: Callable[..., object]
    post_request: Callable[..., object]
    def set(self, name: str, value: object) -> None: ...
