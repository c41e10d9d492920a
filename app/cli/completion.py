"""`completion`: the script that lets a shell complete commands and options."""

import click
from click.shell_completion import FishComplete, get_completion_class

from app.cli.output import json_option, print_json

_VARIABLE = "_INFERENCE_ROUTER_COMPLETE"
"""By which the script asks for completions; click derives the same name from the program's."""


class _Fish(FishComplete):
    """click's own script would end a value, and what is said of it, at its first comma."""

    source_template = FishComplete.source_template.replace('string split ","', 'string split -m 1 ","')


@click.command(epilog="Exits with 0.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def command(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the script that completes words in SHELL.

    bash: `source <(inference-router completion bash)`, zsh: the same with zsh, fish: `inference-router completion fish
    | source`.
    """
    found = _Fish if shell == "fish" else get_completion_class(shell)
    assert found is not None
    script = found(context.find_root().command, {}, "inference-router", _VARIABLE).source()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        click.echo(script)
