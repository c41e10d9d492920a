"""`keys`: API keys for the file that KEYS_FILE names, which holds their digests only."""

import hashlib
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from app.cli.completions import model_name
from app.cli.output import json_option, print_json
from app.config.keys_file import parse_keys
from app.config.keys_schema import TENANT_PATTERN, TENANT_RULE
from app.errors import KeysError

_PREFIX = "ir-"
"""By which people, and scanners for secrets, recognise a key."""
_BYTES = 32


@click.group()
def command() -> None:
    """Make API keys. The file that KEYS_FILE names has the SHA-256 of each and not the key."""


@command.command("new", epilog="Exits with 0, or 2 if a keys file can't have such a key.")
@click.option("--tenant", required=True, help="Whose key it is.")
@click.option("--id", "key_id", help="Name of the key, as logs show it. Default: the tenant's and a number.")
@click.option(
    "--model",
    "models",
    multiple=True,
    shell_complete=model_name,
    help="A model that it is for; repeatable. Default: all.",
)
@click.option("--expires", metavar="TIME", help="A date or a time, such as 2030-01-31 or 2030-01-31T12:00:00Z.")
@click.option("--days", type=click.IntRange(1, 36_500), metavar="N", help="In place of --expires: days from now.")
@click.option(
    "--format", "form", type=click.Choice(["toml", "yaml"]), default="toml", show_default=True, help="Of the lines."
)
@json_option
def new(as_json: bool, form: str, **options: Any) -> None:
    """Make a key and print it, this once. Add the lines below it to the file that KEYS_FILE names."""
    secret = _PREFIX + secrets.token_urlsafe(_BYTES)
    entry = _entry(digest_of(secret.encode()), **options)
    if as_json:
        print_json({"secret": secret, "key": entry})
        return
    click.echo(f"{secret}\n")
    click.echo("# The key above is shown this once. It goes to the client, and these lines to KEYS_FILE:", err=True)
    click.echo(_toml(entry) if form == "toml" else _yaml(entry))


@command.command("digest", epilog="Exits with 0, or 2 if there is no key.")
@json_option
def digest(as_json: bool) -> None:
    """Print the SHA-256 of the key on standard input, as KEYS_FILE has it. A line break at its end is left out."""
    secret = sys.stdin.buffer.read().rstrip(b"\r\n")
    if not secret:
        raise click.UsageError("standard input must hold a key")
    found = digest_of(secret)
    if as_json:
        print_json({"sha256": found})
    else:
        click.echo(found)


def digest_of(secret: bytes) -> str:
    """Returns what KEYS_FILE has of a key. It is long and random, so that nothing slower than SHA-256 is needed."""
    return hashlib.sha256(secret).hexdigest()


def _entry(  # noqa: PLR0913, PLR0917  # the options
    sha256: str, tenant: str, key_id: str | None, models: tuple[str, ...], expires: str | None, days: int | None
) -> dict[str, Any]:
    """Returns the key's entry in the file. Raises UsageError."""
    key_id = key_id or f"{tenant}-{secrets.token_hex(4)}"
    for option, name in (("--tenant", tenant), ("--id", key_id)):
        if not re.match(TENANT_PATTERN, name):
            raise click.UsageError(f"{option}: must be {TENANT_RULE}")
    if expires and days:
        raise click.UsageError("--expires and --days exclude each other")
    entry: dict[str, Any] = {"id": key_id, "sha256": sha256, "tenant": tenant}
    if models:
        entry["models"] = list(models)
    if expires or days:
        entry["expires"] = _time(expires, days)
    try:
        parse_keys(_toml(entry), "keys.toml")
    except KeysError as error:  # such as a model of no name: no key is printed that the router would refuse
        raise click.UsageError(str(error).partition(": ")[2]) from None
    return entry


def _time(text: str | None, days: int | None) -> str:
    if text is None:
        until = datetime.now(UTC) + timedelta(days=days or 0)
    else:
        try:
            until = datetime.fromisoformat(text)
            until = until.astimezone(UTC) if until.tzinfo else until.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise click.UsageError("--expires: must be a date or a time, such as 2030-01-31T12:00:00Z") from None
        if until <= datetime.now(UTC):
            raise click.UsageError("--expires: is over already")
    return f"{until:%Y-%m-%dT%H:%M:%SZ}"


def _toml(entry: dict[str, Any]) -> str:
    return "\n".join(("[[keys]]", *(f"{name} = {_text(value)}" for name, value in entry.items())))


def _yaml(entry: dict[str, Any]) -> str:
    """Returns an item of the list `keys`."""
    lines = [f"{name}: {_text(value)}" for name, value in entry.items()]
    return "\n".join(("keys:", f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])))


def _text(value: Any) -> str:
    """Returns a text, or a list of texts, as JSON writes it: both TOML and YAML read it so."""
    return msgspec.json.encode(value).decode()
