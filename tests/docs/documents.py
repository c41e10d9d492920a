"""The blocks of the documents, as CommonMark reads them.

The convention, which CONTRIBUTING.md tells its readers:

- ```console: lines after `$ ` are commands, the lines below a command what it prints. `...` stands for what varies: in
  a line for any text, alone in a line for any lines. Times may differ too, and the widths of columns. Without such
  lines, what it prints does not matter.
- ```sh: a command in each line, without what they print.
- A block of any other language is the file that the paragraph before it ends with, as in: Write `routes.toml`:
"""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
NAMES = tuple(
    str(path.relative_to(ROOT))
    for path in sorted(
        [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("ops/*/*.md")]
    )
)
"""The documents with commands in them. CHANGELOG.md has none: what it says was so once."""

_PROMPT = "$ "
_VARIES = re.compile(r'\.\.\.|(?<=Ms":)\d+|(?<=_ms":)\d+|(?<=dur=)[\d.]+|\b\d+(\.\d+)?(?= m?s\b)')
"""Dots, and numbers of milliseconds or seconds."""
_STYLE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
_RUNS = re.compile("([ ─█])\\1+")
_WORDS = re.compile(
    r"(?!(?:if|for|while|until|case|select|function|coproc)\b)"
    r"""(?:[\w ./:=,@%+-]|"[^"\\`$]*"|'[^']*')+(?:\s#.*)?"""
)
"""A line that is a command for certain: words and whole strings, of which the first opens nothing, and a comment."""
_FILE = re.compile(r"`([\w./-]+\.\w+)`:$")


class Command(NamedTuple):
    """A command of a document, and what it shows of its output."""

    document: str
    line: int
    """That of its block."""
    text: str
    shown: str

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.document}:{self.line}"

    @property
    def fails(self) -> bool:
        """Whether the document shows that it fails."""
        return bool(re.search(r"^error: ", self.shown, re.IGNORECASE | re.MULTILINE))

    def shows(self, printed: str) -> bool:
        """Whether this output is the one that the document shows."""
        return bool(re.fullmatch(_pattern(tidy(self.shown).splitlines()), tidy(printed), re.DOTALL))

    def shows_part_of(self, printed: str) -> bool:
        """Whether every line that the document shows is in this output, in order: of what goes on and on."""
        pattern = _pattern(
            [line for shown in tidy(self.shown).split("\n")[:-1] if shown for line in ("...", shown)] + ["..."]
        )
        return bool(re.fullmatch(pattern, tidy(printed), re.DOTALL))


class Block(NamedTuple):
    """A fenced block, or an indented one, which has no language."""

    document: str
    line: int
    language: str
    text: str
    file: str
    """The name that the paragraph before gives it; empty: none."""

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.document}:{self.line}"

    def commands(self) -> list[Command]:
        """The commands in it, in order."""
        if self.language == "console":
            return list(_transcript(self))
        if self.language != "sh":
            return []
        return [Command(self.document, self.line, text, "") for text in _commands_of(self.text.splitlines())]


@cache
def blocks_of(name: str) -> tuple[Block, ...]:
    """The blocks of a document, in order."""
    tokens = MarkdownIt().parse((ROOT / name).read_text())
    found = []
    for at, token in enumerate(tokens):
        if token.type in ("fence", "code_block"):
            line = (token.map or [0])[0] + 1
            found.append(Block(name, line, token.info.strip(), token.content, _file_before(tokens, at)))
    return tuple(found)


def commands_of(name: str) -> list[Command]:
    """The commands in the blocks of a document, in order."""
    return [command for block in blocks_of(name) for command in block.commands()]


@cache
def inline_code_of(name: str) -> tuple[str, ...]:
    """What stands between backquotes in the text of a document."""
    tokens = MarkdownIt().enable("table").parse((ROOT / name).read_text())
    children = [child for token in tokens for child in token.children or []]
    return tuple(child.content for child in children if child.type == "code_inline")


def _pattern(shown: list[str]) -> str:
    """The expression for these lines. A line of dots alone is any number of whole lines."""
    return "".join("(?:[^\n]*\n)*?" if line == "..." else _line_pattern(line) for line in shown)


def _line_pattern(line: str) -> str:
    parts, end = [], 0
    for found in _VARIES.finditer(line):
        parts += [re.escape(line[end : found.start()]), "[^\n]*" if found[0] == "..." else "[\\d.]+"]
        end = found.end()
    return "".join([*parts, re.escape(line[end:]), "\n"])


def tidy(printed: str) -> str:
    """Output without styles, and without what makes tables as wide as their cells, as those with other ports are."""
    plain = _RUNS.sub(r"\1", _STYLE.sub("", printed))
    return "\n".join(line.strip() for line in plain.splitlines()).strip("\n") + "\n"


def _file_before(tokens: list[Token], at: int) -> str:
    """The file that the paragraph before this block ends with."""
    if at < 2 or tokens[at - 1].type != "paragraph_close":
        return ""
    found = _FILE.search(tokens[at - 2].content)
    return found[1] if found and ".." not in PurePath(found[1]).parts else ""


def _transcript(block: Block) -> Iterator[Command]:
    """The commands of a transcript, each with the lines below it."""
    lines = block.text.splitlines()
    assert lines
    assert lines[0].startswith(_PROMPT), f"{block.place}: the first line of a transcript is a command, after `$ `"
    while lines:
        end = next((at for at, line in enumerate(lines[1:], 1) if line.startswith(_PROMPT)), len(lines))
        part, lines = lines[:end], lines[end:]
        part[0] = part[0].removeprefix(_PROMPT)
        size = next((size for size in range(1, end) if _is_complete(part[:size])), end)
        yield Command(block.document, block.line, "\n".join(part[:size]), "\n".join(part[size:]).strip("\n"))


def _commands_of(lines: list[str]) -> Iterator[str]:
    """The commands of a script. Comments and empty lines are none."""
    part: list[str] = []
    for line in lines:
        if part or (line.strip() and not line.startswith("#")):
            part.append(line)
        if part and _is_complete(part):
            yield "\n".join(part)
            part = []
    if part:
        yield "\n".join(part)


def _is_complete(lines: list[str]) -> bool:
    """Whether a shell would begin to run this, and not wait for more: of a string, a loop, a here-document."""
    if lines[-1].endswith("\\"):
        return False
    if len(lines) == 1 and _WORDS.fullmatch(lines[0]):
        return True  # no shell need be asked, which is most of what reading the documents takes
    checked = subprocess.run(["bash", "-n"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    return not checked.returncode and not checked.stderr
