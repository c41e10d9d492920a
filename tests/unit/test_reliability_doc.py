"""docs/reliability.md: whatever it says that holds has a test of that name, and its figures are those measured."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
_SECTION = re.compile(r"^## .*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_DEFAULT_FILE = re.compile(r"Tests without a folder are in `([\w/.]+)`")
_TITLED = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"\[([^\]]+)\]\(performance\.md#([\w-]+)\)")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
_TEST = re.compile(r"`(?:([\w/.]+)::)?(test_\w+)`")


def test_every_test_that_the_page_names_is_there() -> None:
    """Every row of a table names at least one, by its file or in the file that the section names."""
    for section in _SECTION.findall(PAGE):
        default = _DEFAULT_FILE.search(section)
        rows = [line for line in section.splitlines() if line.startswith("|")][2:]
        for row in rows:
            named = _TEST.findall(row)
            assert named, row
            for file, test in named:
                assert file or default, row
                path = _path(file or (default[1] if default else ""))
                assert f"\ndef {test}(" in path.read_text(), f"{path} has no {test}"


def test_every_figure_of_a_promise_is_where_its_link_leads() -> None:
    """The table of promises comes first, and each number in the words of a link is in that section."""
    first = _SECTION.findall(PAGE)[0]
    assert first.startswith("## Promises\n")
    links = _FIGURE.findall(first)
    assert links
    performance = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): text
        for title, text in _TITLED.findall((ROOT / "docs/performance.md").read_text())
    }
    for words, anchor in links:
        measured = set(_NUMBER.findall(performance[anchor]))
        assert set(_NUMBER.findall(words)) <= measured, words


def _path(file: str) -> Path:
    """Returns where a file of tests is: the controller's have a folder of their own."""
    return ROOT / file if file.startswith("ops/") else ROOT / "tests" / file
