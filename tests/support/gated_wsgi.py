"""The router with a model that enters the test's gate (gate.py), for `gunicorn -c gunicorn.conf.py` to run.

The same settings, limiter, metrics and application as app/wsgi.py; only the model is another.
"""

import os
import socket

from msgspec import UNSET, Raw, UnsetType

from app.protocols.calls import Inference
from app.wsgi import start
from tests.support.registry import OneModel, TestModel, application_over

router = start().router


class GatedModel(TestModel):
    """Inside the model is: connected to the gate."""

    name = router.settings.model_ref

    def infer(self, request: Inference) -> Raw | UnsetType:
        if b'"raise"' in request.body:
            raise RuntimeError("the model was told to fail")
        with socket.socket(socket.AF_UNIX) as gate:
            gate.connect(os.environ["TEST_GATE"])
            gate.sendall(bytes(request.prompt)[1:-1] or b"-")
            gate.recv(1)
        return UNSET


application = application_over(router, OneModel(GatedModel()))
