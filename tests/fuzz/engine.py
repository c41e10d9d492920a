"""What the fuzz targets share: which modules are instrumented, and how atheris is run.

Atheris is libFuzzer for Python. It changes inputs at random, and goes on from those that reach branches or comparisons
which none before them reached. So it needs to see into the code under test, and only there: what else is instrumented
costs time and makes it follow what is beside the point.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import atheris

Target = Callable[[bytes], None]
"""Called with an input; raises if it shows a fault."""

_OPTIONS = (
    "-keep_seed=1",  # a match is one step to the fuzzer: what differs only within it would be dropped as known
    "-timeout=5",  # seconds that one input may take, by the clock; such an input is reported too
    "-print_final_stats=1",
    f"-artifact_prefix={tempfile.gettempdir()}/",  # where the inputs that fail are left
)


class _Loader(SourceFileLoader):
    """Loads a module instrumented."""

    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return code and atheris.patch_code(code, trace_dataflow=True)


class _Finder(MetaPathFinder):
    """Finds the modules to instrument. Atheris's own takes whole distributions only: all of `app`, all of gunicorn."""

    def __init__(self, names: Iterable[str]) -> None:
        self.missing = set(names)
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parts = fullname.split(".")
        known = self._names.intersection(".".join(parts[:count]) for count in range(1, len(parts) + 1))
        spec = PathFinder.find_spec(fullname, path, target) if known else None
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        self.missing -= known
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


@contextmanager
def instrumented(*names: str) -> Iterator[None]:
    """Instrument these modules, and those inside them, where they are imported in here for the first time."""
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
    assert not finder.missing, f"not imported, or before: {finder.missing}"


def fuzz(target: Target, seeds: Iterable[bytes], tokens: Iterable[bytes]) -> None:
    """Run the target as the command line says, from these seeds, with these tokens to put in. Ends the process.

    The options are libFuzzer's (`-help=1`), -max_total_time among them. With names of files, it runs just these.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        child = os.fork()  # when the time is up, libFuzzer ends its process without cleaning up
        if not child:
            _run(target, seeds, tokens, Path(folder))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends libFuzzer, and then this
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def _run(target: Target, seeds: Iterable[bytes], tokens: Iterable[bytes], folder: Path) -> None:
    corpus, dictionary = folder / "corpus", folder / "dictionary"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"{number:04}").write_bytes(seed)
    dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in tokens))
    given = sys.argv[1:]
    files = any(not option.startswith("-") for option in given)
    options = [*_OPTIONS, f"-dict={dictionary}", *given, *(() if files else (str(corpus),))]
    atheris.Setup([sys.argv[0], *options], _telling(target))
    atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _telling(target: Target) -> Target:
    """The target, which shows an input that fails as one would write it in a test."""

    def run(data: bytes) -> None:
        try:
            target(data)
        except KeyboardInterrupt:
            raise
        except BaseException:
            sys.stderr.write(f"\nfails: {data!r}\n")
            raise

    return run
