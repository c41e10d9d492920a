from typing import Any

from gunicorn.config import Config
from gunicorn.http import errors as errors
from gunicorn.http.parser import RequestParser

def get_parser(cfg: Config, source: Any, source_addr: Any) -> RequestParser: ...
