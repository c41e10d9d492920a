import re
from typing import Any

CHUNK_EXT_RE: re.Pattern[bytes]

class ChunkedReader: ...

class LengthReader:
    def __init__(self, unreader: Any, length: int) -> None: ...

class Body:
    reader: Any
    failed: bool
    def __init__(self, reader: Any) -> None: ...
    def read(self, size: int | None = None) -> bytes: ...
