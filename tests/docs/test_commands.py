"""Every command of the documents works, and prints what they show."""

import re
import shlex
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from app.cli.main import cli
from tests.docs.documents import NAMES, Command, commands_of, inline_code_of
from tests.docs.not_run import NOT_RUN, exception_of
from tests.docs.walkthrough import Walkthrough

COMMANDS = {name: commands_of(name) for name in NAMES}
RUN = [name for name, commands in COMMANDS.items() if any(exception_of(one.text) is None for one in commands)]
LEFT_OUT = [one for commands in COMMANDS.values() for one in commands if exception_of(one.text) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_document_can_be_followed(name: str, tmp_path: Path) -> None:
    """Each command runs as it stands there, in order, with the files of the document; output that is shown comes."""
    with ExitStack() as resources:
        Walkthrough(name, tmp_path, resources).follow()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({one.document for one in LEFT_OUT}))
def test_commands_that_are_not_run_are_checked(name: str) -> None:
    """What can't be run here is still understood by the program that it is for, as far as that goes."""
    for command in LEFT_OUT:
        exception = exception_of(command.text)
        if command.document == name and exception is not None:
            exception.check(command.text)


@pytest.mark.parametrize("exception", NOT_RUN, ids=lambda one: one.reason)
def test_exception_is_needed(exception: object) -> None:
    """A kind of command that no document has any longer would one day hide a command that should run."""
    assert [one for one in LEFT_OUT if exception_of(one.text) is exception]
