"""The command line: `inference-router`, also `python -m app`.

Every command prints tables for people, and with `--json` one JSON document for programs. It exits with 0, with 1 if
what was checked or asked for is wrong or can't be had, and with 2 if it was called wrongly. No secret is printed but
the one that `keys new` makes. The server imports nothing of this package, and no command imports what it does not use.
"""
