"""Compiles the CUDA C++ kernels of csrc/cuda to PTX and launches them in the simulator as csrc/cuda/*.cu do."""

import functools
import hashlib
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.cuda_aot import CSRC, readable
from ssl_fast.tools import build as package_build
from ssl_fast.tools import cuda_toolkit

from .compile import span, union
from .simulator import Program, Result, build, load, run

CHUNK, SMALL_TABLE, LARGE_TABLE = 4096, 124, 1020  # csrc/common/chunks.h
ROWS_OF_A_BLOCK = 8  # csrc/cuda/enqueue.cu
ELEMENTS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "Bfloat16", torch.float16: "Half"}
_ENTRY = re.compile(r"^\s*(?:\.visible|\.weak)?\s*\.entry\s+([\w$]+)", re.MULTILINE)


@functools.cache
def ptx(source: str, device: str = "sm_80") -> str:
    """The PTX of csrc/cuda/`source`.cu; kept on disk by the contents of csrc, the compiler and the flags."""
    toolkit, lacking = cuda_toolkit.find()
    assert toolkit, lacking
    includes = [f"-I{path}" for path in (CSRC, *toolkit.include)]
    command = [f"{toolkit.home}/bin/nvcc", *package_build.NVCC_FLAGS, "-lineinfo", "-ptx"]
    command += ["-arch", device.replace("sm", "compute"), *includes, str(CSRC / "cuda" / f"{source}.cu")]
    files = [path for folder in ("cuda", "common") for path in sorted((CSRC / folder).iterdir())]
    contents = [toolkit.version.encode(), repr(command).encode(), *(path.read_bytes() for path in files)]
    digest = hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
    target = build.cache() / f"{source}-{device}-{digest}.ptx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, "kernels.ptx")
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True)
            os.replace(made, target)
    return target.read_text()


@functools.cache
def _entries(source: str) -> dict[str, tuple[str, int, int]]:
    """Readable name -> mangled name, and where its text begins and ends."""
    text = ptx(source)
    found = list(_ENTRY.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    names = readable([match[1] for match in found])
    return {name: (match[1], match.start(), end) for name, match, end in zip(names, found, ends, strict=True)}


def kernels(source: str) -> list[str]:
    """As bench.cuda_aot names them: "enqueue_kernel<float, Half>"."""
    return list(_entries(source))


def program(source: str, name: str) -> Program:
    """One kernel by itself: a module has dozens."""
    text = ptx(source)
    mangled, begin, end = _entries(source)[name]
    head = text[: min(start for _, start, _ in _entries(source).values())]
    body = text[begin:end].split(".section", 1)[0]
    files = "\n".join(re.findall(r"^\s*\.file.*$", text, re.MULTILINE))
    return load("\n".join((head, body, files, "")), mangled)


def _run(kernel: Program, parameters: bytes, tensors: list[Tensor], blocks: int, threads, **how) -> Result:
    result = run(kernel, parameters, union([span(tensor) for tensor in tensors]), (blocks,), threads=threads, **how)
    assert result.reports == []
    return result


def ema(
    target: list[Tensor], source: list[Tensor], momentum: float | Tensor, seed: Tensor | None = None, **how
) -> None:
    """What ema() of ema.cu does for pairs of the same two dtypes; integers are copied as bytes."""
    copied = not target[0].is_floating_point()
    types = ("unsigned char",) * 2 if copied else (ELEMENTS[target[0].dtype], ELEMENTS[source[0].dtype])
    on_device = isinstance(momentum, Tensor)
    address = {momentum.dtype: momentum.data_ptr()} if on_device else {}
    numbers = struct.pack(
        "<dQQQ",
        0.0 if on_device else momentum,
        address.get(torch.float32, 0),
        address.get(torch.float64, 0),
        0 if seed is None else seed.data_ptr(),
    )
    rounds_at_random = seed is not None and types[0] == "Bfloat16"
    kept = [*([momentum] if on_device else []), *([] if seed is None else [seed])]
    for first in range(0, len(target), LARGE_TABLE):
        part = slice(first, first + LARGE_TABLE)
        table, blocks, capacity = _table(target[part], source[part], first, copied)
        name = f"ema_kernel<{', '.join(types)}, {str(rounds_at_random).lower()}, {capacity}>"
        tensors = [*target[part], *source[part], *kept]
        _run(program("ema", name), table + numbers, tensors, blocks, (256,), **how)


def _table(target: list[Tensor], source: list[Tensor], first: int, copied: bool) -> tuple[bytes, int, int]:
    """A ChunkTable, how many blocks it takes, and its capacity."""
    capacity = SMALL_TABLE if len(target) <= SMALL_TABLE else LARGE_TABLE
    counts = [x.numel() * (x.element_size() if copied else 1) for x in target]
    ends = torch.tensor([-(-count // CHUNK) for count in counts]).cumsum(0).tolist()

    def column(values, code: str) -> bytes:
        return struct.pack(f"<{capacity}{code}", *values, *[0] * (capacity - len(target)))

    places = range(first, first + len(target))
    addresses = [column([x.data_ptr() for x in side], "Q") for side in (target, source)]
    numbers = [column(counts, "q"), column(ends, "I"), column(places, "I"), struct.pack("<ixxxx", len(target))]
    return b"".join([*addresses, *numbers]), ends[-1], capacity


def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor, normalize: bool = False, **how) -> None:
    """What enqueue() of enqueue.cu does."""
    task = struct.pack(
        "<3Q7q?xxxxxxx", queue.data_ptr(), keys.data_ptr(), pointer.data_ptr(), queue.shape[0], keys.shape[0],
        queue.shape[1], *queue.stride(), *keys.stride(), normalize,
    )  # fmt: skip
    blocks = -(-min(keys.shape[0], queue.shape[0]) // ROWS_OF_A_BLOCK)
    name = f"enqueue_kernel<{ELEMENTS[queue.dtype]}, {ELEMENTS[keys.dtype]}>"
    _run(program("enqueue", name), task, [queue, keys, pointer], blocks, (32, ROWS_OF_A_BLOCK), **how)
