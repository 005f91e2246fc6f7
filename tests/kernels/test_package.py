"""ssl_fast.kernels as a package: with Triton, without it, and the list of what it holds."""

import importlib
import subprocess
import sys

import pytest

from ssl_fast import kernels
from ssl_fast.operators import backends

TRITON_OPERATORS = [name for name, able in backends.IMPLEMENTATIONS.items() if "triton" in able]


def test_without_triton_it_imports_and_the_backend_says_why_not():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import ssl_fast, ssl_fast.kernels, torch\n"
        "queue = ssl_fast.NegativeQueue(2, 2)\n"
        "try:\n"
        "    with ssl_fast.backend('triton'): queue.enqueue_(torch.eye(2))\n"
        "except ValueError as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "backend 'triton' cannot run enqueue_: triton is not installed", answer.stderr


@pytest.mark.parametrize("operator", TRITON_OPERATORS)
def test_each_triton_operator_has_its_module(operator):
    pytest.importorskip("triton", reason="triton is not installed")
    # Beside kernels in CUDA C++ the operator has a name of its own.
    name = f"triton_{operator}" if "cuda" in backends.IMPLEMENTATIONS[operator] else operator
    module = importlib.import_module(f"ssl_fast.kernels.{kernels.MODULES[name]}")
    assert callable(getattr(module, operator))
