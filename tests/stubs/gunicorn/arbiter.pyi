from collections.abc import Callable

from gunicorn.config import Config

class Arbiter:
    pid: int
    cfg: Config
    murder_workers: Callable[[], None]
