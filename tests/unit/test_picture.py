"""The README's picture of how requests flow."""

import re
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from tests.support.chromium import PROGRAM, launch

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs/router.svg"
SVG = "{http://www.w3.org/2000/svg}"
_LARGEST_BYTES = 20 * 1024


def test_picture_of_the_readme_is_small_and_stands_alone() -> None:
    """It is well-formed, has a title and a description, loads nothing, and is shown in the README."""
    text = FILE.read_text()
    root = ET.fromstring(text)
    assert len(text) < _LARGEST_BYTES
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    assert not re.search(r"href|url\(|@import|<script|<image|\son\w+=", text)
    assert "](docs/router.svg)" in (ROOT / "README.md").read_text()


def test_every_class_of_the_picture_has_its_colours() -> None:
    """No element has a class without a rule, and each rule with a colour has one for the dark scheme."""
    root = ET.fromstring(FILE.read_text())
    light, dark = (root.findtext(f"{SVG}style") or "").split("@media (prefers-color-scheme:dark)")
    used = {name for element in root.iter() for name in element.get("class", "").split()}
    assert used == set(re.findall(r"\.([\w-]+)\{", light))
    assert set(re.findall(r"([\w.-]+)\{[^}]*#", light)) == set(re.findall(r"([\w.-]+)\{[^}]*#", dark))


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM, reason="there is no Chromium: `make chromium` installs it")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_of_the_picture_stay_in_it_and_apart(scheme: Literal["light", "dark"]) -> None:
    """As drawn by a browser, no text overlaps another one or leaves the picture, in either scheme."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright, launch(playwright) as browser:
        page = browser.new_page(color_scheme=scheme, viewport={"width": 900, "height": 440})
        page.goto(FILE.as_uri())
        background = page.evaluate("getComputedStyle(document.querySelector('.background')).fill")
        drawn = page.evaluate(
            "[...document.querySelectorAll('text')].map(text => {"
            "const {x, y, width, height} = text.getBBox();"
            "return [text.textContent, x, y, x + width, y + height, getComputedStyle(text).fill]})"
        )
    light = 255 if scheme == "light" else 13
    assert background.startswith(f"rgb({light},")
    width, height = (float(value) for value in re.findall(r'viewBox="0 0 (\d+) (\d+)"', FILE.read_text())[0])
    for number, (words, left, top, right, bottom, colour) in enumerate(drawn):
        assert min(left, top, width - right, height - bottom) >= 0, words
        assert colour != background, words
        for others, left_2, top_2, right_2, bottom_2, _ in drawn[:number]:
            apart = right <= left_2 or right_2 <= left or bottom - 4 <= top_2 or bottom_2 - 4 <= top
            assert apart, f"{words!r} is over {others!r}"
