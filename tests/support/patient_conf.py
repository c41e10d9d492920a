"""gunicorn.conf.py, but model servers have longer to end a body whose last event has come.

gunicorn -c python:tests.support.patient_conf
"""

from pathlib import Path

_CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"
exec(compile(_CONFIGURATION.read_text(), str(_CONFIGURATION), "exec"))  # first: it patches the standard library

from app.upstream import pool  # noqa: E402

pool._END_WITHIN_S = 15.0  # a test that is without CPU for a moment does not miss it
