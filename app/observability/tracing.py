"""Tracing."""

from typing import Any

Trace = Any
