"""GET /: the status page, one file that loads nothing. Its figures come from `/admin/live`.

Its script and its styles may run because the policy has their hashes (Content Security Policy Level 3 section 8.4).
So nothing that a name or an error text could bring into the page would run, or be loaded.
"""

import base64
import hashlib
import re
from importlib.resources import files

import falcon

from app.api.admin.access import AdminAccess

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class StatusPageResource:
    """The page, on the admin listener."""

    def __init__(self, access: AdminAccess) -> None:
        self._access = access
        self._page = files("app.api.admin").joinpath("status.html").read_bytes()
        self._headers = {
            "Content-Security-Policy": policy(self._page.decode()),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._access.check(req)
        resp.content_type = falcon.MEDIA_HTML
        resp.set_headers(self._headers)
        resp.data = self._page

    on_head = on_get


def policy(page: str) -> str:
    """Returns the Content-Security-Policy of a page: its own inline script and style, and its own server's data."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    sources = "; ".join(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items())
    return (
        f"default-src 'none'; {sources}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
