"""Compiles the modules of the request's path with Cython. Everything else of the package is in pyproject.toml.

Without a C compiler, or with ROUTER_PURE=1, the package is installed uncompiled: the same sources, which run slower. So
is an editable installation, always: compiled in place, a module would hide the source that is being edited.
`python -m app --version` says which form is installed.
"""

import os
import runpy
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HELPERS = "app.cython_helpers"
"""What Cython adds to every module that has views of memory, made once for all of them."""


CONFIG = "gunicorn.conf.py"


class BuildWithConfig(build_py):
    """Adds gunicorn's configuration to the package, for `inference-router run` where there is no checkout."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if Path(CONFIG).exists() and not self.editable_mode:
            self.copy_file(CONFIG, str(Path(self.build_lib, "app", CONFIG)))


def has_compiler() -> bool:
    """Whether an extension of Python can be compiled here."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler, get_python_inc

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text("#include <Python.h>\n")
        compiler = new_compiler()
        customize_compiler(compiler)
        try:
            compiler.compile([str(source)], output_dir=folder, include_dirs=[get_python_inc()])
        except Exception:  # noqa: BLE001  # whatever fails, it can't compile
            return False
    return True


def extensions() -> list[Extension]:
    """Returns the extensions to build."""
    from Cython.Build import cythonize

    names = runpy.run_path("app/compiled.py")["MODULES"]
    sources = {name: Path(*name.split(".")).with_suffix(".pyx") for name in names}
    modules = [Extension(name, [str(at if at.exists() else at.with_suffix(".py"))]) for name, at in sources.items()]
    helpers = Extension(HELPERS, ["app/cython_helpers.c"])
    for each in (*modules, helpers):
        each.extra_compile_args = ["-g0"]  # Python asks for debug information, which takes a third of the time
    return cythonize(
        [*modules, helpers],
        build_dir="build/cython",
        shared_utility_qualified_name=HELPERS,
        # Annotations are for people and mypy. The types that Cython goes by are in the .pxd files.
        compiler_directives={"language_level": "3", "annotation_typing": False},
        show_all_warnings=False,
    )


COMMANDS = {"build_py": BuildWithConfig}

if os.environ.get("ROUTER_PURE") == "1":
    print("ROUTER_PURE=1: the package is built uncompiled", file=sys.stderr)
    setup(cmdclass=COMMANDS)
elif "editable_wheel" in sys.argv:
    setup(cmdclass=COMMANDS)
elif has_compiler():
    setup(cmdclass=COMMANDS, ext_modules=extensions(), options={"build_ext": {"parallel": os.cpu_count()}})
else:
    print("no C compiler, or no Python headers: the package is built uncompiled, and runs slower", file=sys.stderr)
    setup(cmdclass=COMMANDS)
