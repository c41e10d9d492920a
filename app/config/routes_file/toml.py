"""A TOML text as plain values, and the line of each."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from app.config.routes_file.source import TOO_DEEP, Path, syntax_error


def read_toml(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """The values of a TOML text, and the line of each by its path. Raises RoutesError."""
    try:
        return tomllib.loads(text), _TomlLines(text).lines
    except RecursionError:
        raise syntax_error(name, 1, TOO_DEEP) from None
    except ValueError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        if found is None:  # Python's own error for a number with thousands of digits has no position
            raise syntax_error(name, 1, str(error)) from None
        line = int(found[2] or text.rstrip("\n").count("\n") + 1)
        raise syntax_error(name, line, found[1]) from None


class _TomlLines:
    """The line of each member of a TOML text, which tomllib does not return. The text must be valid TOML."""

    _TOKEN = re.compile(
        r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
        r"|'''.*?'''(?:'{0,2})"
        r'|"(?:\\.|[^"\\\n])*"'
        r"|'[^'\n]*'"
        r"|(?P<skip>#[^\n]*|[ \t\r]+)"
        r"|[\n\[\]{}=,.]"
        r"|[^\s\[\]{}=,.\"'#]+",
        re.DOTALL,
    )

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {(): 1}
        self._tables: dict[Path, int] = {}  # number of tables so far in each `[[array]]`
        self._tokens = self._split(text)
        self._now, self._line = "", 0
        table: Path = ()
        self._next()
        while self._now:
            if self._now == "\n":
                self._next()
            elif self._now == "[":
                table = self._header()
            else:
                self._member(table)

    def _split(self, text: str) -> Iterator[tuple[str, int]]:
        line = 1
        for found in self._TOKEN.finditer(text):
            if not found["skip"]:
                yield found[0], line
            line += found[0].count("\n")
        yield "", line

    def _next(self) -> None:
        self._now, self._line = next(self._tokens, ("", self._line))

    def _key(self, path: Path, *, header: bool = False) -> Path:
        """The path that a dotted key leads to. An `[[array]]` within it stands for its last table."""
        while True:
            if header and path in self._tables:
                path += (self._tables[path] - 1,)
            path += (self._now.strip("\"'"),)
            self.lines.setdefault(path, self._line)
            self._next()
            if self._now != ".":
                return path
            self._next()

    def _header(self) -> Path:
        self._next()
        array = self._now == "["
        if array:
            self._next()
        path = self._key((), header=True)
        if array:
            self._tables[path] = self._tables.get(path, 0) + 1
            path += (self._tables[path] - 1,)
            self.lines[path] = self._line
        while self._now == "]":
            self._next()
        return path

    def _member(self, table: Path) -> None:
        path = self._key(table)
        self._next()  # over the =
        self._value(path)

    def _value(self, path: Path) -> None:
        self.lines.setdefault(path, self._line)
        if self._now in ("[", "{"):
            is_list, count = self._now == "[", 0
            self._next()
            while self._now not in ("]", "}", ""):
                if self._now in (",", "\n"):
                    self._next()
                elif is_list:
                    self._value((*path, count))
                    count += 1
                else:
                    self._member(path)
            self._next()
        else:
            while self._now not in (",", "]", "}", "\n", ""):
                self._next()
