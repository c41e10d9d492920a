"""The commands as docs/cli.md has them: what each does, how it exits, and what its options mean."""

from collections.abc import Iterator

import click

from app.cli import main

_EXITS = "Exits with "


def commands(group: click.Group = main.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, and the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def exits() -> Iterator[tuple[str, str, str]]:
    """Each command, what it does, and its exit codes."""
    for words, command in commands():
        assert command.help is not None
        assert command.epilog is not None
        does = " ".join(command.help.partition("\n\n")[0].split())
        yield f"`{words}`", does, command.epilog.removeprefix(_EXITS)


def options() -> Iterator[tuple[str, str]]:
    """Each option, by its command. That of all commands is left out."""
    for words, command in commands():
        context = click.Context(command)
        for parameter in command.params:
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None and (parameter.name != "as_json" or words == "run"):
                names, about = (text.replace("|", "\\|").replace("  [", " [") for text in record)
                yield f"`{words}` `{names}`", about
