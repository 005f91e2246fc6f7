"""Which implementation of an operator runs: reference, cpu, triton or cuda.

`auto` takes the fastest that is there. Any other request is fulfilled or is an error that says
why not; it is never replaced silently.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import loading

BACKENDS = ("reference", "cpu", "triton", "cuda")
DEVICE = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}

# Best first. The reference has every operator and runs on every device.
IMPLEMENTATIONS = {
    "nt_xent": ("cpu", "triton"),
    "info_nce": ("cpu", "triton"),
    "similarity_lse": ("cpu", "triton"),
    "pair_similarity": ("cpu", "triton"),
    "class_similarity": ("cpu", "triton"),
    "similarity_softplus": ("cpu", "triton"),
    "ema_update_": ("cpu", "cuda", "triton"),
    "enqueue_": ("cpu", "cuda", "triton"),
}


def why_not(operator: str, backend_name: str, device_type: str) -> str:
    """Why this backend cannot run this operator on this device; empty where it can."""
    if backend_name == "reference":
        return ""
    if backend_name not in IMPLEMENTATIONS[operator]:
        return f"{operator} has no {backend_name} kernel"
    if backend_name == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    # Every kernel is behind an operator, whose schema the extension holds.
    if loading.extension is None:
        return f"the compiled extension is missing, {loading.why_missing}"
    if backend_name == "cuda" and not loading.record.get("cuda"):
        lacking = "; ".join(loading.record.get("cuda_missing", ["unknown"]))
        return f"the extension was built without CUDA kernels, missing {lacking}"
    if "CPU" in loading.kernels.registered and device_type == "cpu":  # for tests, Triton's interpreter took the place
        return "" if backend_name == "triton" else "Triton's interpreter took its place in this process"
    if device_type != DEVICE[backend_name]:
        return f"it runs on {DEVICE[backend_name]} tensors and these are on {device_type}"
    return _no_code() if backend_name == "cuda" and torch.cuda.is_available() else ""


def _no_code() -> str:
    """Why the compiled CUDA kernels cannot run on some GPU that is here; empty where they can on all."""
    built = loading.record["cuda"]["architectures"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not any(_runs(each, major, minor) for each in re.split("[; ]", built)):
            return f"it was compiled for {built} and GPU {index} is {major}.{minor}; TORCH_CUDA_ARCH_LIST chooses"
    return ""


def _runs(architecture: str, major: int, minor: int) -> bool:
    """Code runs on later minor versions of its architecture, PTX on all later ones."""
    number, _, ptx = architecture.partition("+")
    of = tuple(int(part) for part in re.findall(r"\d+", number))
    if not of:  # a name, as "Hopper": the driver will tell
        return True
    if number.endswith("a"):  # of that GPU alone
        return of == (major, minor)
    return of <= (major, minor) if ptx else of[0] == major and of[1] <= minor


def _checked(name: str, source: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{source}: expected one of {', '.join(BACKENDS)}, auto; got {type(name).__name__}")
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, auto; got {name!r}")
    return name


_requested = os.environ.get("SSL_FAST_BACKEND", "auto")  # checked when an operator runs: an import raises nothing
_chosen: dict[tuple[str, str, str], str] = {}


def choose(operator: str, device_type: str) -> str:
    """The backend that runs `operator` on tensors of this device type.

    Raises ValueError where the requested backend cannot.
    """
    key = (_requested, operator, device_type)
    if torch.compiler.is_compiling():  # a cache that tracing fills would fail the guards on it
        return _choose(*key)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(*key)
    return chosen


def _choose(requested: str, operator: str, device_type: str) -> str:
    if _checked(requested, "SSL_FAST_BACKEND") == "auto":
        able = [name for name in IMPLEMENTATIONS[operator] if not why_not(operator, name, device_type)]
        # The interpreter is for tests, never a faster way on the CPU.
        return next((name for name in able if DEVICE[name] == device_type), "reference")
    reason = why_not(operator, requested, device_type)
    if reason:
        raise ValueError(f"backend {requested!r} cannot run {operator}: {reason}")
    return requested


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the operators called inside on one backend: `with ssl_fast.backend("reference"):`.

    name: "reference", "cpu", "triton", "cuda" or "auto" (the default outside, or what the
    environment variable SSL_FAST_BACKEND says). The choice holds for all threads of the process.
    Raises ValueError for an unknown name here, and for a backend that cannot run at the call.
    """
    global _requested
    before, _requested = _requested, _checked(name, "name")
    try:
        yield
    finally:
        _requested = before
