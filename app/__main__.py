"""`python -m app` says which release is installed, and whether it is compiled."""

from importlib import metadata

from app.compiled import form

print(f"inference-router {metadata.version('inference-router')}, {form()}")
