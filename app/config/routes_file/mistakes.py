"""Which mistakes of a file are told: each that is there, once, and none that only follows from another one."""

import re
from collections.abc import Iterable

from app.config.routes_file.source import Mistake


def first_causes(values: Iterable[Mistake], members: Iterable[Mistake], rules: Iterable[Mistake]) -> list[Mistake]:
    """Returns the mistakes by line, without those that follow from one that was found before.

    The file is read in three steps: its values, the members of its records, and the rules about several of them. After
    a mistake the next step goes on with what stands in the place of the value.
    """
    told: dict[object, Mistake] = {}
    for mistake in values:
        told.setdefault(mistake.path, mistake)
    causes = list(told.values())
    for mistake in members:
        if not any(_is_about(mistake, cause) for cause in causes):
            told.setdefault(mistake.path, mistake)
    causes = list(told.values())
    for mistake in rules:
        if not any(_is_about(mistake, cause) or _follows(mistake, cause) for cause in causes):
            told.setdefault(mistake.path, mistake)
    return sorted(told.values(), key=lambda mistake: mistake.line)


def _is_about(mistake: Mistake, cause: Mistake) -> bool:
    """Whether a mistake is about the value of another one, or what is around it or in it."""
    shorter = min(len(mistake.path), len(cause.path))
    return mistake.path[:shorter] == cause.path[:shorter]


def _follows(mistake: Mistake, cause: Mistake) -> bool:
    """Whether a rule may seem to be broken because a default stands in the place of a wrong value.

    Then it is a rule about the same table, and says the name of the member.
    """
    *table, member = cause.path or ("",)
    if mistake.path[: len(table)] != tuple(table):
        return False
    text = mistake.text.partition(" ")[2]  # without the place
    return member in re.findall(r"\w+", text) or (member == "protocol" and bool(re.search("endpoint|model of", text)))
