"""How a setting is declared, and what is made of the texts of several. What converts a text raises ValueError."""

from typing import Any

from msgspec import Meta


def setting(allowed: str, about: str, **bounds: Any) -> Meta:
    """Returns what is said of a setting, and what msgspec checks of it."""
    return Meta(description=about, extra={"allowed": allowed}, **bounds)


def items(text: str) -> tuple[str, ...]:
    """Returns what stands between the commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def absolute_path(text: str) -> str:
    """Returns the text if it is an absolute path."""
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


def document_file(text: str) -> str:
    """Returns the text if it is the path of a TOML, YAML or JSON file."""
    if not text.endswith((".toml", ".yaml", ".yml", ".json")):
        raise ValueError("the ending determines the format")
    return text
