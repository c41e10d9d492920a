"""docs/reliability.md: whatever it says that holds has a test of that name."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
_SECTION = re.compile(r"^## .*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_DEFAULT_FILE = re.compile(r"Tests without a folder are in `([\w/.]+)`")
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


def _path(file: str) -> Path:
    """Returns where a file of tests is: the controller's have a folder of their own."""
    return ROOT / file if file.startswith("ops/") else ROOT / "tests" / file
