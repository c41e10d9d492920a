from gunicorn.config import Config

class Arbiter:
    pid: int
    cfg: Config
