"""csrc/common compiled for the host, as functions on tensors (common.cpp)."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# test_sanitizers.py sets these.
FLAGS = os.environ.get("SSL_FAST_TEST_FLAGS", "").split()
SOURCES = os.environ.get("SSL_FAST_TEST_SOURCES", ROOT / "csrc")


def compiled(folder: Path) -> ctypes.CDLL:
    """The library, built into the folder."""
    library = folder / "common.so"
    strict = ["-Wall", "-Wextra", "-Werror", "-std=c++20", "-O1", "-g", "-shared", "-fPIC"]
    command = ["g++", *strict, *FLAGS, f"-I{SOURCES}", "-o", str(library), str(ROOT / "tests/native/common.cpp")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = ctypes.CDLL(str(library))
    for name in ("limit", "launches"):
        getattr(found, name).restype = ctypes.c_int64
    return found


def why_not() -> str:
    return "" if shutil.which("g++") else "there is no g++ to compile csrc/common with"


def address(x: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def integers(values) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def addresses(tensors) -> torch.Tensor:
    return integers(x.data_ptr() for x in tensors)


def ema(library, target, source, momentum, momentum_tensor=None, seed=None, places=None) -> None:
    """What the CUDA operator launches for lists of one pair of dtypes, without empty tensors."""
    copied = not target[0].is_floating_point()
    types = (4, 4) if copied else (TYPES[target[0].dtype], TYPES[source[0].dtype])
    counts = integers(x.nbytes if copied else x.numel() for x in target)
    places = torch.tensor(range(len(target)) if places is None else places, dtype=torch.int32)
    tables = addresses(target), addresses(source)
    as_float = as_double = None
    if momentum_tensor is not None:
        as_float, as_double = (momentum_tensor if momentum_tensor.dtype == t else None for t in TYPES if t.itemsize > 2)
    library.ema(
        *types, ctypes.c_int64(len(target)), *map(address, (*tables, counts, places)), ctypes.c_double(momentum),
        address(as_float), address(as_double), address(seed),
    )  # fmt: skip


def enqueue(library, queue, queue_ptr, keys, normalize, lanes, order) -> None:
    """What the CUDA operator launches, its blocks in this order."""
    sizes = integers((*queue.shape[:1], *keys.shape, *queue.stride(), *keys.stride()))
    blocks = integers(order)
    library.enqueue(
        TYPES[queue.dtype], TYPES[keys.dtype], *map(address, (queue, keys, queue_ptr, sizes)), int(normalize), lanes,
        address(blocks), ctypes.c_int64(len(blocks)),
    )  # fmt: skip
