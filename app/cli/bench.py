"""`bench`: how fast a router, or any server of the same API, responds."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from app.cli.completions import model_name
from app.cli.load import Bounds, Measured, Target, run, target
from app.cli.output import INTERRUPTED, console, json_option, moves_cursor, print_json, print_table
from app.cli.quantiles import histogram, quantile

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_ROUNDS = 2
"""With --direct the two servers take turns, so that what changes meanwhile concerns both."""
_BAR = 40
_CHAT = "/v1/chat/completions"
_DEFAULT_S = 10.0
KEY_VARIABLE = "ROUTER_KEY"


class _Seconds(click.FloatRange):
    """A range that has no NaN, which no comparison excludes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number", param, ctx)
        return seconds


@click.command(epilog="Exits with 0, 1 if no request to one of the servers succeeded, or 130 at Ctrl-C.")
@click.argument("url")
@click.option("--direct", metavar="URL", help="A model server behind the router: prints how the two compare.")
@click.option("--requests", type=click.IntRange(min=1), metavar="N", help="End after so many requests to each server.")
@click.option(
    "--duration",
    type=_Seconds(min=0, min_open=True, max=86_400),
    metavar="SECONDS",
    help=f"End after so many seconds for each server. Default: {_DEFAULT_S:g}, without --requests.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=10,
    show_default=True,
    help="At the same time.",
)
@click.option("--path", default=_CHAT, show_default=True, help="Path of the request.")
@click.option("--model", shell_complete=model_name, help="The model to ask for.")
@click.option("--prompt", default="Hello", show_default=True, help="What it is asked.")
@click.option("--stream/--no-stream", default=False, help="Whether the response is asked for as a stream of events.")
@click.option(
    "--body", type=click.File("rb"), help="A file with the body to send, in place of --model, --prompt and --stream."
)
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header to send; repeatable.")
@click.option(
    "--timeout",
    "timeout_s",
    type=_Seconds(0.1, 3600),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="For each step of a request.",
)
@json_option
def command(url: str, direct: str | None, as_json: bool, **options: Any) -> None:
    """Send requests to URL and show how long they took: to the end, and to the first token.

    ROUTER_KEY of the environment is sent to URL as its bearer token. Ctrl-C ends it early, with the figures until then.
    """
    context = click.get_current_context()
    body = options["body"].read() if options["body"] else _body(options)
    headers = tuple(_header(text) for text in options["headers"])
    try:
        servers = [target(url, options["path"], body, _with_key(headers, context.obj), options["timeout_s"])]
        if direct:
            servers.append(target(direct, options["path"], body, headers, options["timeout_s"]))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    seconds = options["duration"] or (None if options["requests"] else _DEFAULT_S)
    measured = _measure(servers, Bounds(options["connections"], options["requests"], seconds))
    documents = [_document(server, one) for server, one in zip(servers, measured, strict=True)]
    ratio = _ratio(*documents) if len(documents) > 1 else None
    if as_json:
        print_json({"server": documents[0], "direct": documents[1] if direct else None, "ratio": ratio})
    else:
        _print(documents, measured, ratio)
    interrupted = any(one.interrupted for one in measured)
    if interrupted:
        click.echo("interrupted: the figures are those until then", err=True)
    context.exit(INTERRUPTED if interrupted else 0 if all(one.times for one in measured) else 1)


def _body(options: dict[str, Any]) -> bytes:
    chat = {"messages": [{"role": "user", "content": options["prompt"]}]}
    body: dict[str, Any] = chat if options["path"].endswith("/chat/completions") else {"prompt": options["prompt"]}
    if options["model"]:
        body["model"] = options["model"]
    if options["stream"]:
        body["stream"] = True
    return msgspec.json.encode(body)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text.partition(':')[0]!r}: must be NAME:VALUE")
    return name.strip(), value.strip()


def _with_key(headers: tuple[tuple[str, str], ...], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Returns these headers and the key of the environment, unless they have a credential.

    It is no option, because other users of a machine see those. It is the router's: model servers do not get it.
    """
    key = environ.get(KEY_VARIABLE, "").strip()
    if not key or any(name.lower() in ("authorization", "x-api-key") for name, _ in headers):
        return headers
    return (*headers, ("Authorization", f"Bearer {key}"))


def _measure(servers: list[Target], bounds: Bounds) -> list[Measured]:
    """Returns what was measured of each server. With two, each has its turns."""
    rounds = _ROUNDS if len(servers) > 1 and bounds.requests != 1 else 1
    measured = [Measured() for _ in servers]
    with _progress(servers, bounds) as advance:
        for number in range(rounds):
            for server, total in zip(servers, measured, strict=True):
                total.add(run(server, _part(bounds, rounds, number), advance))
                if total.interrupted:
                    return measured
    return measured


def _part(bounds: Bounds, rounds: int, number: int) -> Bounds:
    """Returns the bounds of one round."""
    requests = None
    if bounds.requests is not None:
        requests = bounds.requests * (number + 1) // rounds - bounds.requests * number // rounds
    return Bounds(bounds.connections, requests, bounds.seconds and bounds.seconds / rounds)


@contextmanager
def _progress(servers: list[Target], bounds: Bounds) -> Iterator[Any]:
    """Show how far it is, on standard error if that is a terminal. Yields what is called after every request."""
    from rich.progress import Progress  # noqa: PLC0415  # see output.console

    terminal = console(stderr=True)
    total = bounds.requests or bounds.seconds or 1
    with Progress(console=terminal, disable=not moves_cursor(stderr=True), transient=True) as progress:
        task = progress.add_task("requests" if bounds.requests else "seconds", total=total * len(servers))
        if bounds.requests:
            yield lambda: progress.advance(task)
        else:
            yield lambda: progress.update(task, completed=progress.tasks[0].elapsed or 0)


def _document(server: Target, measured: Measured) -> dict[str, Any]:
    """Returns the figures of one server."""
    seconds = max(measured.seconds, 1e-9)
    return {
        "url": server.url,
        "seconds": round(measured.seconds, 3),
        "requests": len(measured.times) + measured.errors.total(),
        "succeeded": len(measured.times),
        "errors": dict(measured.errors.most_common()),
        "requests_per_s": round(len(measured.times) / seconds, 1),
        "tokens_per_s": round(measured.tokens / seconds, 1),
        "latency_ms": _quantiles(measured.times),
        "first_token_ms": _quantiles(measured.first_output),
    }


def _quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {name: round(quantile(ordered, share) * 1000, 3) for name, share in _SHARES.items()} if ordered else {}


def _ratio(server: dict[str, Any], direct: dict[str, Any]) -> dict[str, float]:
    """Returns the figures of the first one divided by those of the other."""
    pairs = {
        "requests_per_s": (server["requests_per_s"], direct["requests_per_s"]),
        **{
            f"{what}_{name}": (value, direct[f"{what}_ms"].get(name, 0.0))
            for what in ("latency", "first_token")
            for name, value in server[f"{what}_ms"].items()
        },
    }
    return {name: round(one / other, 3) for name, (one, other) in pairs.items() if other}


def _print(documents: list[dict[str, Any]], measured: list[Measured], ratio: dict[str, float] | None) -> None:
    names = ("requests", "succeeded", "seconds", "requests_per_s", "tokens_per_s")
    rows = [(name.replace("_", " ").replace(" per s", "/s"), *(one[name] for one in documents)) for name in names]
    for what, words in (("latency", "latency, ms"), ("first_token", "first token, ms")):
        rows += [(f"{words}: {name}", *(one[f"{what}_ms"].get(name) for one in documents)) for name in _SHARES]
    for kind in dict.fromkeys(kind for one in documents for kind in one["errors"]):
        rows.append((f"error: {kind}", *(one["errors"].get(kind, 0) for one in documents)))
    print_table(("", *(one["url"] for one in documents)), rows)
    if measured[0].times:
        _print_histogram(sorted(measured[0].times))
    if ratio:
        print_table(
            ("Through the router / direct", "Ratio"), [(k.replace("_", " "), f"{v:.3f}") for k, v in ratio.items()]
        )


def _print_histogram(ordered: list[float]) -> None:
    bins = histogram(ordered)
    most = max(one.number for one in bins)
    rows = [
        (f"{one.low * 1000:,.2f} to {one.high * 1000:,.2f}", one.number, "█" * -(-_BAR * one.number // most) or " ")
        for one in bins
    ]
    print_table(("Latency, ms", "Requests", ""), rows)
