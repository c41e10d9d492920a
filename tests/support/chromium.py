"""A headless Chromium, driven by Playwright: Debian's, or whatever CHROMIUM names. Nothing is downloaded."""

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

PROGRAM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
"""Its path; empty: there is none."""


def launch(playwright: "Playwright") -> "Browser":
    """Start it. In a container nobody but root is there, and /dev/shm is small."""
    return playwright.chromium.launch(
        executable_path=PROGRAM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    )
