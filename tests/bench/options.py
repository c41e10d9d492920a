"""Types of the benches' options, and the option that they share."""

import argparse
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a number from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


def add_svg(parser: argparse.ArgumentParser) -> None:
    """The file that plot.write_svg writes."""
    about = "draw the first table into this file, and the others into files beside it: FILE-2.svg and so on"
    parser.add_argument("--svg", type=_svg_file, metavar="FILE.svg", help=about)


def _svg_file(text: str) -> Path:
    """Checked before minutes of measuring, which would be lost."""
    file = Path(text)
    if file.suffix != ".svg" or not file.parent.is_dir():
        raise argparse.ArgumentTypeError("must end with .svg, in a folder that exists")
    return file
