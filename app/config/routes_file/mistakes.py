"""Which mistakes of a file are told: each that is there, once, and none that only follows from another one."""

import re
from collections.abc import Iterable

from app.config.routes_file.source import Mistake


def first_causes(wrong: Iterable[Mistake], broken: Iterable[Mistake]) -> list[Mistake]:
    """Returns the wrong values, and those broken rules that do not follow from them, by line.

    A rule is checked with the default in the place of a value that is wrong. So it may seem to be broken where it is
    about that value.
    """
    told = {mistake.path: mistake for mistake in reversed(list(wrong))}
    causes = list(told.values())
    for mistake in broken:
        if not any(_follows(mistake, cause) for cause in causes):
            told.setdefault(mistake.path, mistake)
    return sorted(told.values(), key=lambda mistake: mistake.line)


def _follows(mistake: Mistake, cause: Mistake) -> bool:
    """Whether a broken rule may be so only because of a wrong value."""
    shorter = min(len(mistake.path), len(cause.path))
    if mistake.path[:shorter] == cause.path[:shorter]:
        return True  # about the value, or what is around it or in it
    *table, member = cause.path
    if mistake.path[: len(table)] != tuple(table):
        return False
    text = mistake.text.partition(" ")[2]  # without the place
    return member in re.findall(r"\w+", text) or (member == "protocol" and bool(re.search("endpoint|model of", text)))
