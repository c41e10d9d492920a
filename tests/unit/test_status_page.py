"""The file of the status page: small, self-contained, and allowed to do nothing that it does not do."""

import base64
import hashlib
import re
import tomllib
from pathlib import Path

from app.api.admin import status_page
from tests.support.local_router import LocalRouter

ROOT = Path(__file__).parents[2]
FILE = Path(status_page.__file__).with_name("status.html")
PAGE = FILE.read_text()


def test_page_is_small_and_loads_nothing() -> None:
    """It is under 60 KiB, and refers to nothing that a browser would fetch, here or elsewhere."""
    assert FILE.stat().st_size < 60 << 10
    markup = re.sub(r"<(script|style)>.*?</\1>", "", PAGE, flags=re.DOTALL)
    assert {link.partition(":")[0] for link in re.findall(r'(?:src|href|action|srcset)="([^"]*)', markup)} == {
        "data",
        "metrics",
    }
    assert not re.search(r"@import|url\(|importScripts|import\(", PAGE)
    assert re.findall(r"fetch\(([^,]*),", PAGE) == ['"admin/live"']
    urls = re.findall(r"[a-z]+://[\w./]+", PAGE)
    assert set(urls) == {"http://www.w3.org/2000/svg"}, "the name of a namespace, and nothing else"


def test_page_is_packaged() -> None:
    """It is in the wheel and in the source distribution, as is every file beside the modules that they read."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {str(file.relative_to(ROOT)) for file in (ROOT / "app").rglob("*.html")}
    assert found == {f"{package.replace('.', '/')}/{name}" for package, names in data.items() for name in names}
    assert "*.html" in (ROOT / "MANIFEST.in").read_text()


def test_policy_allows_this_page_only(tmp_path: Path) -> None:
    """The policy has the hashes of the one script and the one style sheet, and no wildcard, host or unsafe source."""
    with LocalRouter(
        tmp_path, ADMIN_BIND="127.0.0.1:80"
    ) as local:  # which WSGI takes for the port of a request without one
        answer = local.ask("GET", "/", headers={"Host": "127.0.0.1"})
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for kind in ("script", "style"):
        (inline,) = re.findall(rf"<{kind}\b[^>]*>(.*?)</{kind}>", answer.body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_page_needs_no_exception_from_its_policy() -> None:
    """No element has a style or a handler of its own, and no text is ever parsed as HTML or run."""
    markup = re.sub(r"<(script|style)>.*?</\1>", "", PAGE, flags=re.DOTALL)
    assert not re.search(r"\s(?:style|on[a-z]+)\s*=", markup)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", PAGE)
