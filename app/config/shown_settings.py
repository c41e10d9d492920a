"""The settings as people are shown them, without a secret."""

import re
from typing import Any

import msgspec

from app.config.settings import Settings

_SECRET = re.compile("secret|password|credential|sha256", re.IGNORECASE)
_USERINFO = re.compile("://.*@", re.DOTALL)
"""Of a URL: to the last @, since a password may contain any character."""
_MASK = "***"


def variables() -> list[str]:
    """Returns the variables of all settings."""
    return [field.name.upper() for field in msgspec.structs.fields(Settings)]


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings by their variables, without a secret."""
    return {name: shown_setting(name, getattr(settings, name.lower())) for name in variables()}


def shown_setting(name: str, value: Any) -> Any:
    """Returns the value of a variable as it is shown: no secret, and no user or password of a URL.

    Paths are shown: only files hold secrets, and no variable is to. This is for the one that is added some day.
    """
    if value and _SECRET.search(name) and not name.endswith("_FILE"):
        return _MASK
    if isinstance(value, (list, tuple)):
        return [shown_setting(name, item) for item in value]
    return _USERINFO.sub(f"://{_MASK}@", value) if isinstance(value, str) else value
