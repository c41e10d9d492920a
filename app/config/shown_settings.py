"""The settings as people are shown them, without a secret."""

import re
from typing import Any

import msgspec

from app.config.settings import Settings

_SECRET = re.compile("secret|password|credential|sha256", re.IGNORECASE)
_MASK = "***"


def variables() -> list[str]:
    """Returns the variables of all settings."""
    return [field.name.upper() for field in msgspec.structs.fields(Settings)]


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings by their variables, without a secret."""
    values = {name: getattr(settings, name.lower()) for name in variables()}
    values["KV_ENDPOINTS"] = settings.kv_endpoints_masked
    for name, value in values.items():
        # Paths are shown: only files hold secrets, and no variable is to. This is for the one that is added some day.
        if value and _SECRET.search(name) and not name.endswith("_FILE"):
            values[name] = _MASK
    return values
