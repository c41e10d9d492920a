"""A headless Chromium, driven by Playwright, and axe-core. `make chromium` installs both; nothing is fetched here."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

PROGRAM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
"""The browser's path; empty: there is none."""
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
AXE = Path(os.environ.get("AXE_HOME") or _CACHE / "inference-router-axe") / "package" / "axe.min.js"
"""Where `make chromium` puts axe-core."""


def launch(playwright: "Playwright") -> "Browser":
    """Start it. In a container there may be no user but root, and /dev/shm is small."""
    return playwright.chromium.launch(
        executable_path=PROGRAM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    )


def violations(page: "Page") -> list[dict[str, Any]]:
    """Returns what axe-core finds wrong with the page as it is now, with the elements concerned."""
    page.evaluate(AXE.read_text())  # by the debugger, which the page's policy does not concern
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        {
            "rule": each["id"],
            "impact": each["impact"],
            "at": [(node["html"], node["failureSummary"]) for node in each["nodes"]],
        }
        for each in found
    ]
