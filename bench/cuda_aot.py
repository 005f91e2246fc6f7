"""Compiles the CUDA C++ kernels for devices that need not be there, and reads what came out.

`python -m bench.cuda_aot` compiles csrc/cuda for all of them and prints registers, spills and access widths.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ssl_fast.kernels.tuning.ahead_of_time import access_widths, disassembled
from ssl_fast.tools import build, cuda_toolkit

CSRC = build.csrc_folder()
SOURCES = sorted(CSRC.glob("cuda/*.cu"))
DEVICES = ("sm_80", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs of one device."""

    name: str  # with its element types
    registers: int  # a thread
    spilled: int  # bytes a thread, stores and loads
    load_bits: tuple[int, ...]  # width of each instruction that loads from global memory
    store_bits: tuple[int, ...]


def readable(names: list[str]) -> list[str]:
    """Mangled names as ema_kernel<Bfloat16, float, true, 124>."""
    answer = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    plain = re.sub(r"ssl_fast::|cuda::|\(anonymous namespace\)::|ChunkTable<(\d+)> ", r"\1", answer.stdout)
    return [re.search(r"\w+<[^()]*>", line)[0] for line in plain.splitlines()]


def compiled(source: Path, device: str) -> list[Kernel]:
    """All kernels of a .cu file, as its build would compile them; every warning is an error."""
    toolkit, lacking = cuda_toolkit.find()
    assert toolkit, lacking
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        architecture = f"arch={device.replace('sm', 'compute')},code={device}"
        command = [
            f"{toolkit.home}/bin/nvcc", *build.NVCC_FLAGS, "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin",
            "-gencode", architecture, f"-I{CSRC}", *(f"-I{path}" for path in toolkit.include),
            "-o", str(cubin), str(source),
        ]  # fmt: skip
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        code = disassembled(cubin.read_bytes())
    usage = re.findall(
        r"Function properties for (\S+)\n\s*\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        answer.stderr,
        re.DOTALL,
    )
    bodies = dict(re.findall(r"\.section\s+\.text\.(\S+?),.*?\n(.*?)(?=\n\s*\.section|\Z)", code, re.DOTALL))
    return [
        Kernel(
            name=short_name,
            registers=int(registers),
            spilled=int(stores) + int(loads),
            load_bits=access_widths(r"\bLDG\.E(\S*)", bodies[name]),
            store_bits=access_widths(r"\bSTG\.E(\S*)", bodies[name]),
        )
        for (name, stores, loads, registers), short_name in zip(usage, readable([row[0] for row in usage]), strict=True)
    ]


def main() -> None:
    start = time.perf_counter()
    tasks = [(source, device) for source in SOURCES for device in DEVICES]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(tasks, pool.map(lambda task: compiled(*task), tasks), strict=True))
    for source in SOURCES:
        print(f"\n{source.name}: registers (spilled bytes) on {', '.join(DEVICES)}; widest loads and stores in bits")
        rows = zip(*(results[source, device] for device in DEVICES), strict=True)
        for row in sorted(rows, key=lambda row: row[0].name):
            figures = "  ".join(f"{kernel.registers:3} ({kernel.spilled})" for kernel in row)
            wide = {max(kernel.load_bits) for kernel in row} | {max(kernel.store_bits) for kernel in row}
            print(f"  {row[0].name:50} {figures}   {sorted(wide)}")
    print(f"\n{len(tasks)} compilations in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
