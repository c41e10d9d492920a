"""Every command of the documents works, and prints what they show."""

import re
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from app.cli.main import cli
from tests.docs.documents import NAMES, Command, commands_of, inline_code_of
from tests.docs.not_run import NOT_RUN, Kind, kind_of
from tests.docs.walkthrough import follow

COMMANDS = {name: commands_of(name) for name in NAMES}
TUTORIAL = "docs/tutorial.md"
"""It takes as long as all the others, so test_tutorial.py follows it at the same time."""
RUN = [name for name, commands in COMMANDS.items() if any(kind_of(one.text) is None for one in commands)]
LEFT_OUT = [one for commands in COMMANDS.values() for one in commands if kind_of(one.text) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*RUN} - {TUTORIAL}))
def test_document_can_be_followed(name: str, tmp_path: Path) -> None:
    """Each command runs as it stands there, in order, with the files of the document; output that is shown comes."""
    follow(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({one.document for one in LEFT_OUT}))
def test_commands_that_are_not_run_are_checked(name: str) -> None:
    """What can't be run here is still understood by the program that it is for, as far as that goes."""
    for command in LEFT_OUT:
        kind = kind_of(command.text)
        if command.document == name and kind is not None:
            kind.check(command.text)


@pytest.mark.parametrize("kind", NOT_RUN, ids=lambda one: one.reason)
def test_kind_that_is_not_run_is_needed(kind: Kind) -> None:
    """A kind of command that no document has any longer would one day hide a command that should run."""
    assert [one for one in LEFT_OUT if kind_of(one.text) is kind]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_text_exist(name: str) -> None:
    """A command that a sentence names has its subcommand and options, or is a module that is there."""
    for code in inline_code_of(name):
        words = code.split()
        if words[0] == "inference-router":
            _parse(words[1:])
        found = re.search(r"python -m ((?:app|tests)[\w.]*)", code)
        assert not found or find_spec(found[1]), code


def _parse(words: list[str]) -> None:
    """Have click parse a command, which may lack arguments, or have words such as ID where a number is."""
    command: click.Command = cli
    context = click.Context(cli, **cli.context_settings)  # a command remembers the help option of its first context
    rest = list(words)
    while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
        found = command.get_command(context, rest.pop(0))
        assert found is not None, words
        command = found
    try:
        command.make_context("inference-router", rest, parent=context)
    except click.NoSuchOption as error:
        raise AssertionError(f"{words}: {error}") from error
    except (click.ClickException, click.exceptions.Exit):
        pass  # it lacks an argument, or is --help


def test_transcript_is_compared() -> None:
    """Dots stand for any text or lines, times and widths may differ, and nothing else may."""
    shown = Command("", 0, "", "A  B\n...\nsent ... in 5 ms\n")
    assert shown.shows("A     B\nx\ny\nsent 3 in 17.2 ms\n")
    assert shown.shows("\n\x1b[1mA B\x1b[0m \nsent 9 in 0 ms")
    assert not shown.shows("A  B\nsent 3 in 17 s\n")
    assert not shown.shows("A  C\nsent 3 in 17 ms\n")
    assert not shown.shows("A  B\nsent 3 in 17 ms\nmore\n")
    assert shown.shows_part_of("before\nA B\nbetween\nsent 3 in 17 ms\nmore\n")
    assert not shown.shows_part_of("sent 3 in 17 ms\nA B\n")
