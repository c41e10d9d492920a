"""Model servers that nobody here wrote, for tests: KServe with a scikit-learn model, LitServe with an OpenAI API.

Each runs in a process group of its own, on a free loopback port, with one worker. Its program is text, written to the
test's folder, as its users would write it: the tests' own process imports none of what these servers bring along.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from tests.support.ports import free_port
from tests.support.router import until

_PAUSE_S = 0.1
"""LitServe's rest before each word that it streams, so that a client can leave in the middle."""

# KServe would listen on every interface. Its other options come from the command line.
_KSERVE = """
import kserve.model_server
from kserve.utils.utils import get_predict_response
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


class Iris(kserve.Model):
    def __init__(self):
        super().__init__("iris")
        self.model = LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        return get_predict_response(payload, self.model.predict_proba(payload.inputs[0].as_numpy()), self.name)


class LoopbackServer(kserve.model_server.RESTServer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.config.host = "127.0.0.1"


kserve.model_server.RESTServer = LoopbackServer
kserve.ModelServer().start([Iris()])
"""

# It forks and spawns processes, which import this file again.
_LITSERVE = """
import os
import sys
import time

import litserve


class Words(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request

    def predict(self, request):
        words = f"litserve heard: {request.messages[-1].content}".split()
        for at, word in enumerate(words):
            if request.stream:
                time.sleep(float(sys.argv[2]))
            yield f" {word}" if at else word
            while request.stream and os.path.exists(sys.argv[3] + str(at)):
                time.sleep(0.01)


if __name__ == "__main__":
    server = litserve.LitServer(
        Words(spec=litserve.OpenAISpec()), accelerator="cpu", devices=1, healthcheck_path="/readyz"
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
"""


class ModelServer:
    """`with SklearnServer(folder) as server:` runs it; it is gone afterwards, whatever happens."""

    name: str
    program: str
    health: str
    """Path that answers 200 once models are served."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"{self.name}-{self.port}.log"
        self._program = folder / f"serve_{self.name}.py"  # another name than the package that it imports
        self._process: subprocess.Popen[bytes]

    def arguments(self) -> list[str]:
        """What follows the program on the command line."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._program.write_text(self.program)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(self._program), *self.arguments()],
                cwd=self._program.parent,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": ""},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until(lambda: self._process.poll() is not None or self.ready(), f"{self.name} is ready", 120)
            assert self._process.returncode is None, f"{self.name} exited with {self._process.returncode}"
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of it, those too that would outlive the first."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended by themselves
        finally:
            self._process.wait(10)
            sys.stderr.write(self.log())  # pytest shows it if the test failed

    @property
    def pid(self) -> int:
        """Process id of the first process, and the id of the group of all."""
        return self._process.pid

    def ready(self) -> bool:
        """Whether it serves."""
        try:
            return requests.get(f"{self.url}{self.health}", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def log(self) -> str:
        """What it has printed."""
        return self.log_path.read_text(errors="replace")


class SklearnServer(ModelServer):
    """KServe's Python server with the model `iris`, trained as it starts: four lengths in, three probabilities out."""

    name = "kserve"
    program = _KSERVE
    health = "/v2/health/ready"

    def arguments(self) -> list[str]:
        return ["--http_port", str(self.port), "--enable_grpc", "false"]


class LitServeOpenAI(ModelServer):
    """LitServe's OpenAI-compatible server, whatever the model's name: `litserve heard: ` and the last message."""

    name = "litserve"
    program = _LITSERVE
    health = "/readyz"
    """The same as a router's, as one path serves all endpoints of a model."""

    def hold(self, word: int) -> Path:
        """While this file exists, nothing is made of a stream after this word, counted from 0."""
        return self._program.with_name(f"hold-{word}")

    def arguments(self) -> list[str]:
        return [str(self.port), str(_PAUSE_S), str(self._program.with_name("hold-"))]
