"""What the tests of this folder need: marks that skip them, with the reason, where it is lacking."""

import importlib.util
import os

import pytest

from .simulator import build


def _why_no_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    # Triton reads it when it is imported.
    return "TRITON_INTERPRET=1: kernels are not compiled" if os.environ.get("TRITON_INTERPRET") == "1" else ""


def _mark(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(reason), reason=reason)


needs_simulator = _mark(build.why_not())
needs_triton = _mark(build.why_not() or _why_no_triton())
