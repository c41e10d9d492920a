"""`python -m app` is the command line `inference-router`."""

import signal


def main() -> None:
    """Run the command line.

    Ctrl-C while it is being imported ends the process at once, as it ends a program that needs no import: Python's own
    handler would print a traceback of whatever module it was in.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # it may be ignored, as in a script's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli.main import main as command_line  # noqa: PLC0415  # after the lines above

    signal.signal(signal.SIGINT, handler)
    command_line()


if __name__ == "__main__":
    main()
