"""The one list of backends under test: a name added here gets the whole suite.

Where a backend cannot run, its tests are skipped with the reason, which also stands in pytest's header.
Tests on GPU tensors have the marker gpu. With TRITON_INTERPRET=1 (kernels/conftest.py) the process tests
nothing but the Triton kernels, on CPU tensors.
"""

import os

import pytest
import torch

from bench.gpu import interpreter
from ssl_fast.operators import backends, loading

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETED else ["reference", "cpu", "triton", "cuda"]

if INTERPRETED and loading.extension is not None:
    interpreter.use()


def device_of(backend: str) -> str:
    """The device type of the tensors that this backend takes."""
    return "cpu" if INTERPRETED else backends.DEVICE.get(backend, "cpu")


def why_not(operator: str, backend: str) -> str:
    """Why `operator` cannot run on this backend here; empty where it can."""
    if device_of(backend) == "cuda" and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return backends.why_not(operator, backend, device_of(backend))


# For tests of the compiled operators themselves, whatever backend is chosen.
only_compiled = pytest.mark.skipif(
    loading.extension is None, reason=f"the compiled extension is missing, {loading.why_missing}"
)


def every_backend(operator: str, but: tuple[str, ...] = ()):
    """Runs a test once per backend, with its name as the argument `backend`."""
    params = []
    for name in BACKENDS:
        if name in but or (name == "cuda" and name not in backends.IMPLEMENTATIONS[operator]):
            continue  # in CUDA C++ there are few
        reason = why_not(operator, name)
        marks = [pytest.mark.skipif(bool(reason), reason=f"{name}: {reason}")]
        if device_of(name) == "cuda":
            marks.append(pytest.mark.gpu)
        params.append(pytest.param(name, marks=marks))
    return pytest.mark.parametrize("backend", params)


def every_fused_backend(operator: str):
    """Every backend but the reference, whose matrix products round ties apart and are stored."""
    return every_backend(operator, but=("reference",))


# For tests of what is there on every device, whatever backend is chosen.
on_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
            ],
        ),
    ],
)
