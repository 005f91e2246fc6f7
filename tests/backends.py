"""The one list of backends under test: a name added here gets the whole suite.

Where a backend cannot run, its tests are skipped with the reason, which also stands in pytest's header.
"""

import pytest
import torch

from ssl_fast import backends, native

BACKENDS = ["reference", "cpu"]


def device_of(backend: str) -> str:
    """The device type of the tensors that this backend takes."""
    return backends.DEVICE.get(backend, "cpu")


def why_not(operator: str, backend: str) -> str:
    """Why `operator` cannot run on this backend here; empty where it can."""
    if device_of(backend) == "cuda" and not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return backends.why_not(operator, backend, device_of(backend))


# For tests of the compiled operators themselves, whatever backend is chosen.
only_compiled = pytest.mark.skipif(
    native.extension is None, reason=f"the compiled extension is missing, {native.why_missing}"
)


def every_backend(operator: str, but: tuple[str, ...] = ()):
    """Runs a test once per backend, with its name as the argument `backend`."""
    params = []
    for name in BACKENDS:
        if name in but:
            continue
        reason = why_not(operator, name)
        params.append(pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=f"{name}: {reason}")))
    return pytest.mark.parametrize("backend", params)


def every_fused_backend(operator: str):
    """Every backend but the reference, whose matrix products round ties apart and are stored."""
    return every_backend(operator, but=("reference",))
