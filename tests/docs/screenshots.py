"""Makes the screenshots of the status page in docs/: `python -m tests.docs.screenshots`.

A real router with scripted model servers is loaded for a minute, and the page is seen in a headless Chromium. One
endpoint fails, one fails its health checks, and one model has more requests than its limit allows.
"""

import io
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.support.chromium import launch
from tests.support.ports import free_port
from tests.support.router import ROOT, Router
from tests.support.upstream import Reply, Seen, Upstream

_WARM_UP_S = 62  # the curves are of a minute
_SHOTS: dict[str, dict[str, Any]] = {
    "status-light": {"viewport": {"width": 1280, "height": 940}, "color_scheme": "light"},
    "status-dark": {"viewport": {"width": 1280, "height": 940}, "color_scheme": "dark"},
    "status-phone": {"viewport": {"width": 360, "height": 760}, "color_scheme": "light", "device_scale_factor": 1.5},
}
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'


def stream(seen: Seen, reply: Reply) -> None:
    """Generates text as a model server does: a first token after a while, then more."""
    time.sleep(random.uniform(0.05, 0.25))
    reply.begin()
    for _ in range(random.randint(5, 25)):
        reply.chunk(_EVENT)
        time.sleep(0.02)
    reply.chunk(b"data: [DONE]\n\n")
    reply.chunk()


def fail(seen: Seen, reply: Reply) -> None:
    """Fails, as a server whose GPU is lost."""
    reply.send(500, b'{"error":{"message":"CUDA error: device-side assert triggered"}}')


@contextmanager
def loaded_router(folder: Path) -> Iterator[str]:
    """Runs a router under load; yields the address of its admin listener."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(Upstream(fail if name == "llama-2" else stream))
            for name in ("llama-0", "llama-1", "llama-2", "llama-3", "qwen-0", "qwen-1")
        }
        servers["llama-3"].well = False
        (folder / "names").write_text(json.dumps({f"{name}.models": ["127.0.0.1"] for name in servers}))
        models = [
            {
                "name": f"{kind}-instruct",
                **limits,
                "health_check": {"interval_s": 1, "unhealthy_after": 2},
                "ejection": {"base_s": 30},
                "versions": [
                    {"endpoints": [f"http://{n}.models:{s.port}" for n, s in servers.items() if n.startswith(kind[:4])]}
                ],
            }
            for kind, limits in (("llama-3.3-70b", {}), ("qwen3-8b", {"max_concurrency": 8}))
        ]
        (folder / "routes.json").write_text(json.dumps({"models": models}))
        admin = free_port()
        router = Router(
            folder,
            options=("-c", "python:tests.support.names_conf"),
            TEST_NAMES=folder / "names",
            ADMIN_BIND=f"127.0.0.1:{admin}",
            ROUTES_FILE=folder / "routes.json",
            MAX_CONCURRENCY=24,
            QUEUE_SIZE=32,
            QUEUE_TIMEOUT_MS=2000,
            POD_NAME="inference-router-7d9c5-x2xkq",
            ACCESS_LOG="off",
        )
        stack.enter_context(router)
        over = threading.Event()
        stack.callback(over.set)
        for number in range(34):
            name = models[number % 3 == 0]["name"]
            threading.Thread(target=_ask, args=(router.url, name, over), daemon=True).start()
        yield f"http://127.0.0.1:{admin}/"


def _ask(url: str, model: str, over: threading.Event) -> None:
    with requests.Session() as session:
        while not over.wait(random.uniform(0, 0.6)):
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            try:
                session.post(f"{url}/v1/chat/completions", json=body, timeout=20)
            except requests.RequestException:
                return  # the router is gone


def shoot(browser: Browser, url: str, folder: Path) -> None:
    """Opens the page in each form, waits until its curves are drawn, and saves what is seen."""
    pages = {}
    for name, options in _SHOTS.items():
        page = pages[name] = browser.new_context(**options).new_page()
        page.goto(url)
    time.sleep(_WARM_UP_S)
    for name, page in pages.items():
        seen = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        seen.quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


def main() -> None:
    """Write the screenshots."""
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        launch(playwright) as browser,
        loaded_router(Path(folder)) as url,
    ):
        shoot(browser, url, ROOT / "docs" / "screenshots")


if __name__ == "__main__":
    main()
