import logging
from typing import Any
from wsgiref.types import WSGIApplication

from gunicorn.config import Config

class GeventWorker:
    PIPE: tuple[int, int]
    pid: int
    alive: bool
    nr: int
    max_requests: int
    worker_connections: int
    sockets: list[Any]
    cfg: Config
    log: logging.Logger
    wsgi: WSGIApplication
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def patch(self) -> None: ...
    def notify(self) -> None: ...
    def run(self) -> None: ...
    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None: ...
