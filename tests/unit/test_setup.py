"""How the package is built: compiled where that is possible, and never in place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("app", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "gunicorn.conf.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the package is built of."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(checkout: Path, hook: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend (PEP 517, PEP 660), as pip does; returns what it printed."""
    code = f"from setuptools import build_meta; print('made', build_meta.{hook}('.'))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ROUTER_PURE": "1"}, "ROUTER_PURE=1: the package is built uncompiled"),
        ({"CC": "no-such-compiler"}, "no C compiler, or no Python headers: the package is built uncompiled"),
    ],
    ids=["wanted", "no compiler"],
)
def test_wheel_may_be_pure(checkout: Path, environ: dict[str, str], words: str) -> None:
    """Nothing fails without a compiler: the wheel fits any platform, and one line says why."""
    done = build(checkout, "build_wheel", **environ)
    assert words in done.stderr
    assert "-py3-none-any.whl" in done.stdout


@pytest.mark.slow
def test_wheel_has_the_command_and_what_it_starts_gunicorn_with(checkout: Path) -> None:
    """`pip install` and `inference-router run` are all it takes: no checkout, no file to fetch."""
    build(checkout, "build_wheel", ROUTER_PURE="1")
    (wheel,) = checkout.glob("*.whl")
    with ZipFile(wheel) as opened:
        assert opened.read("app/gunicorn.conf.py") == (ROOT / "gunicorn.conf.py").read_bytes()
        (entry_points,) = [name for name in opened.namelist() if name.endswith("/entry_points.txt")]
        assert b"inference-router = app.__main__:main" in opened.read(entry_points)


@pytest.mark.slow
def test_editable_installation_compiles_nothing(checkout: Path) -> None:
    """A module that was compiled beside its source would run in its place, whatever the source says by then."""
    build(checkout, "build_editable")
    assert not list(checkout.rglob("*.so"))
    assert not list(checkout.joinpath("app").rglob("*.c"))


@pytest.mark.slow
def test_sdist_holds_all_that_the_wheel_is_built_of(checkout: Path) -> None:
    """Declarations and the native module included: wheels are built from it on other machines."""
    build(checkout, "build_sdist")
    (archive,) = checkout.glob("*.tar.gz")
    shutil.unpack_archive(archive, checkout / "unpacked", filter="data")
    (unpacked,) = (checkout / "unpacked").iterdir()
    for kind in ("*.py", "*.pxd", "*.pyx"):
        sources = {path.relative_to(ROOT) for path in ROOT.joinpath("app").rglob(kind)}
        assert sources == {path.relative_to(unpacked) for path in unpacked.joinpath("app").rglob(kind)}
    assert (unpacked / "setup.py").exists()
