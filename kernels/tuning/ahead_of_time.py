"""Compiles Triton kernels as a launch would, for devices that need not be there, and reads what the code needs.

`python -m ssl_fast.kernels.tuning.ahead_of_time` prints what tests/kernels/test_ahead_of_time.py last found of the
tile kernels.
"""

import json
import os
import re
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from .. import ema, enqueue, info_nce_paired
from ..engine import input_gradients, loss_rows, online_softmax, symmetric_tiles, tile, unit_rows, weighted_rows
from . import table

MODULES = (
    ema, enqueue, info_nce_paired, input_gradients, loss_rows, online_softmax, symmetric_tiles, tile, unit_rows,
    weighted_rows,
)  # fmt: skip
# How many bytes of shared memory a block may have at most (CUDA C++ programming guide, compute capabilities; the ISA of
# MI200 and MI300). The devices in table.py have rows of their own, the others take the row of a relative.
SHARED_LIMIT = {
    **table.SHARED_LIMIT,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_103": 227 << 10,
    "sm_121": 99 << 10,
    "gfx90a": 64 << 10,
}
TARGETS = {
    name: GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)
    for name in SHARED_LIMIT
}
REPORTS = Path("build", "aot")  # of the checkout, where the tests run
# Bytes of shared memory of a multiprocessor, for the NVIDIA GPUs that have a row of their own.
SHARED_TOTAL = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10, "sm_120": 100 << 10}


class Launch(NamedTuple):
    """One `kernel[grid](*arguments, **options)`."""

    kernel: JITFunction
    grid: tuple
    arguments: tuple
    options: dict


@dataclass(frozen=True)
class Compiled:
    """What one kernel needs of one device, and its machine code."""

    kernel: str
    registers: int  # of a thread
    local_bytes: int  # of a thread: spilled registers and stack
    shared_bytes: int  # of a block
    load_bits: tuple[int, ...]  # the width of each instruction that loads from global memory
    store_bits: tuple[int, ...]  # the width of each instruction that stores to global memory
    products: tuple[str, ...]  # the names of the matrix units' instructions
    exponentials: int  # the number of instructions
    assembly: str

    def programs(self, warps: int, name: str) -> int:
        """How many programs of this kernel fit on a multiprocessor at once; 0 for AMD, which is not modelled."""
        if name.startswith("gfx"):
            return 0
        # Registers are given out in steps of 8 a thread.
        by_registers = 65536 // (32 * warps * ((self.registers + 7) // 8 * 8))
        by_shared = SHARED_TOTAL[name] // (self.shared_bytes + 1024)
        return min(by_registers, by_shared, (64 if name in ("sm_80", "sm_90", "sm_100") else 48) // warps, 32)


class _Recorder:
    """Takes the place of a kernel in its module and records its launches."""

    def __init__(self, kernel: JITFunction, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append(Launch(self.kernel, grid, arguments, options))


def launches(call, name: str = "sm_80") -> list[Launch]:
    """The launches that call() makes with CPU tensors, which are recorded and not run.

    They are those that the host code would make on TARGETS[name]: with the same tile, warps, alignment and strides.
    """
    recorded: list[Launch] = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(table, "architecture", return_value=name))
        stack.enter_context(mock.patch.object(table, "shared_limit", return_value=SHARED_LIMIT[name]))
        for module in MODULES:
            for attribute, kernel in list(vars(module).items()):
                if isinstance(kernel, JITFunction):
                    stack.enter_context(mock.patch.object(module, attribute, _Recorder(kernel, recorded)))
        call()
    return recorded


class _Driver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"ahead of time for {self.target}"  # Triton keeps compiled kernels under this key

    def get_current_stream(self, device) -> int:
        return 0


@contextmanager
def _active(target: GPUTarget):
    before = driver._active  # driver.reset_active() fails without a device
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = before


def compiled(launch: Launch, name: str) -> Compiled:
    """The launch's kernel, specialised and compiled for TARGETS[name]."""
    with _active(TARGETS[name]):
        kernel = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.options)
    return (_amd if name.startswith("gfx") else _nvidia)(launch.kernel.fn.__name__, kernel)


def _nvidia(name: str, kernel) -> Compiled:
    sass = disassembled(kernel.asm["cubin"])
    usage = _run(triton.knobs.nvidia.cuobjdump.path, kernel.asm["cubin"], "-res-usage")
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        kernel=name,
        registers=used["REG"],
        # Calls of float64 routines have a stack to which nothing is stored, so local loads or stores are looked for.
        local_bytes=used["STACK"] + used["LOCAL"] if re.search(r"\b(LDL|STL)\b", sass) else 0,
        shared_bytes=kernel.metadata.shared,
        # LDGSTS loads straight to shared memory, as pipelined loads do.
        load_bits=access_widths(r"\b(?:LDG|LDGSTS)\.E(\S*)", sass),
        store_bits=access_widths(r"\bSTG\.E(\S*)", sass),
        products=tuple(re.findall(r"\b(DMMA|HMMA|HGMMA|UTC[A-Z]*MMA)\b", sass)),
        exponentials=len(re.findall(r"\bMUFU\.EX2", sass)),
        assembly=sass,
    )


def disassembled(cubin: bytes) -> str:
    """The machine code as text, by the disassembler that comes with Triton."""
    return _run(triton.knobs.nvidia.nvdisasm.path, cubin, "-c")


def access_widths(pattern: str, sass: str) -> tuple[int, ...]:
    """The widths in bits of the accesses that match the pattern. SASS names every width but 32."""
    return tuple(
        int((re.search(r"\.[US]?(8|16|64|128|256)\b", modifiers) or [0, 32])[1])
        for modifiers in re.findall(pattern, sass)
    )


def _run(tool: str, binary: bytes, option: str) -> str:
    # Neither tool reads a pipe. A file in memory has no name in a folder that would have to be cleaned.
    handle = os.memfd_create("cubin")
    try:
        os.write(handle, binary)
        command = [tool, option, f"/proc/self/fd/{handle}"]
        answer = subprocess.run(command, pass_fds=[handle], capture_output=True, text=True)
    finally:
        os.close(handle)
    assert answer.returncode == 0, f"{command}: {answer.stderr}"
    return answer.stdout


def _amd(name: str, kernel) -> Compiled:
    assembly = kernel.asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"^\s*\.{key}:\s*(\d+)", assembly, re.MULTILINE)[1])

    def widths(what: str) -> tuple[int, ...]:
        found = re.findall(rf"\b(?:global|buffer|flat)_{what}_(dwordx?\d?|u?short|s?short|[us]?byte)", assembly)
        return tuple(
            32 * int(size[-1]) if size[-1].isdigit() else {"d": 32, "t": 16, "e": 8}[size[-1]] for size in found
        )

    return Compiled(
        kernel=name,
        registers=number("vgpr_count"),
        local_bytes=number("private_segment_fixed_size"),
        shared_bytes=number("group_segment_fixed_size"),
        load_bits=widths("load"),
        store_bits=widths("store"),
        products=tuple(re.findall(r"\bv_mfma_\w+", assembly)),
        exponentials=len(re.findall(r"\bv_exp_f32", assembly)),
        assembly=assembly,
    )


def print_reports() -> None:
    """Prints the figures of build/aot: a line for each kernel, then their sums for each release and device."""
    columns = (
        "triton",
        "device",
        "kind",
        "width",
        "kernel",
        "tile",
        "registers",
        "local",
        "shared",
        "programs",
        "products",
    )
    print(" ".join(f"{column:>11}" for column in columns))
    found: dict[tuple[str, str], list[dict]] = {}
    for path in sorted(REPORTS.glob("*.json")):
        for row in json.loads(path.read_text()):
            print(" ".join(f"{row[column]!s:>11}" for column in columns))
            found.setdefault((row["triton"], row["device"]), []).append(row)
    for (release, device), rows in found.items():
        most, spilled = max(row["registers"] for row in rows), sum(row["local"] for row in rows)
        print(f"Triton {release}, {device}: {len(rows)} kernels, at most {most} registers, {spilled} bytes spilled")


if __name__ == "__main__":
    print_reports()
