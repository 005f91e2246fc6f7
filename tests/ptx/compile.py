"""Triton kernels to PTX for devices that need not be there, and the parameters of a launch as they lie in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ssl_fast.kernels.tuning import ahead_of_time

from .simulator import Result, build, load, run

_PACKED = {
    "i1": "<?", "u1": "<?", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q",
    "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "fp32": "<f", "fp64": "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one device and one set of specialised arguments."""

    name: str
    ptx: str
    warps: int
    shared_bytes: int
    signature: Mapping[str, str]  # argument -> Triton's name of its type; "constexpr": compiled in


def compile_to_ptx(
    kernel: JITFunction, arguments: Sequence, grid: Sequence[int], options: Mapping, device: str
) -> Compiled:
    """What `kernel[grid](*arguments, **options)` would run on ahead_of_time.TARGETS[device].

    The arguments are CPU tensors and numbers. Kept on disk by source, options and device.
    """
    with _without_assembler(device):
        compiled = kernel.warmup(*arguments, grid=tuple(grid), **options)
    metadata = compiled.metadata
    # `parameters` passes null for the pointers to scratch memory, which no kernel of this project asks for.
    assert metadata.global_scratch_size == metadata.profile_scratch_size == 0
    return Compiled(
        kernel.fn.__name__, compiled.asm["ptx"], metadata.num_warps, metadata.shared, compiled.src.signature
    )


@contextmanager
def _without_assembler(device: str):
    """Triton stops at PTX; its caches keep these kernels apart from those that are compiled to machine code."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(build.cache() / "triton")}))
        stack.enter_context(mock.patch.object(CUDABackend, "make_cubin", return_value=b"none"))
        stack.enter_context(ahead_of_time._active(ahead_of_time.TARGETS[device]))
        # The key under which a JITFunction keeps its compiled kernels in this process.
        stack.enter_context(mock.patch.object(driver.active, "get_current_device", return_value=f"PTX for {device}"))
        yield


def parameters(
    compiled: Compiled, kernel: JITFunction, arguments: Sequence, options: Mapping
) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes of the kernel's parameters, and begin and end of the tensors among them.

    In the order of the signature come the arguments that are not compiled in, each aligned to its size.
    """
    bound = dict(zip(kernel.arg_names, arguments, strict=False))
    bound.update((name, value) for name, value in options.items() if name in kernel.arg_names)
    packed, regions = bytearray(), []
    for name, type in compiled.signature.items():
        if type == "constexpr":
            continue
        value, code = bound[name], _PACKED.get(type, "<Q")
        if type.startswith("*"):
            regions.append(span(value))
            value = value.data_ptr()
        packed.extend(bytes(-len(packed) % struct.calcsize(code)))
        packed.extend(struct.pack(code, value))
    # Triton adds two pointers to scratch memory, null where none is asked for.
    missing = load(compiled.ptx).parameter_bytes - len(packed)
    assert 0 <= missing < 8 + 16, f"{compiled.name}: {missing} bytes of parameters are not accounted for"
    packed.extend(bytes(missing))
    return bytes(packed), regions


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Begin and end of the memory that a tensor with any strides covers."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping spans made one, so that races are seen through all tensors that share memory."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(each for each in spans if each[1] > each[0]):
        if merged and begin < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def simulate(
    kernel: JITFunction, grid: Sequence[int], *arguments, device: str = "sm_80", how=None, **options
) -> Result:
    """`kernel[grid](*arguments, **options)` in the simulator; `how`: keyword arguments of simulator.run."""
    compiled = compile_to_ptx(kernel, arguments, grid, options, device)
    packed, regions = parameters(compiled, kernel, arguments, options)
    return run(load(compiled.ptx), packed, union(regions), grid, shared=compiled.shared_bytes, **(how or {}))
