"""The CUDA C++ kernels compiled for devices that are not here: warnings, registers, spills, access widths.

`python -m bench.cuda_aot` prints the figures.
"""

import itertools
import os
import re
import subprocess

import pytest

pytest.importorskip("triton", reason="triton is not installed, whose disassembler is used")

from bench import cuda_aot
from ssl_fast.tools import cuda_toolkit

TOOLKIT, LACKING = cuda_toolkit.find()
pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(TOOLKIT is None, reason=f"no CUDA compiler: {'; '.join(LACKING)}"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing"),
]
FLOATS = ("float", "double", "Bfloat16", "Half")
# So many registers that two, three or four blocks of 256 threads fit a multiprocessor's 65536.
REGISTERS = {"ema": 80, "ema double": 128, "enqueue": 64}


def kernels(source: str) -> set[str]:
    pairs = list(itertools.product(FLOATS, FLOATS))
    if source == "enqueue":
        return {f"enqueue_kernel<{queue}, {keys}>" for queue, keys in pairs}
    averages = [f"{target}, {of}, false" for target, of in pairs] + [f"Bfloat16, {of}, true" for of in FLOATS]
    types = [*averages, "unsigned char, unsigned char, false"]
    return {f"ema_kernel<{each}, {entries}>" for each in types for entries in (124, 1020)}


@pytest.mark.parametrize("device", cuda_aot.DEVICES)
@pytest.mark.parametrize("source", cuda_aot.SOURCES, ids=lambda path: path.stem)
def test_every_kernel(source, device):
    found = cuda_aot.compiled(source, device)
    assert {kernel.name for kernel in found} == kernels(source.stem)
    for kernel in found:
        assert kernel.spilled == 0, kernel
        limit = REGISTERS["ema double" if kernel.name.startswith("ema_kernel<double") else source.stem]
        assert kernel.registers <= limit, kernel
        # As many wide loads of either side as a thread's elements take, and stores.
        assert kernel.load_bits.count(128) >= 2 - (kernel.name.startswith("ema_kernel<unsigned")), kernel
        assert kernel.store_bits.count(128) >= 1, kernel


def test_kernels_include_nothing_of_torch(tmp_path):
    """Raw pointers and sizes: they compile in seconds, and against any torch."""
    for source in cuda_aot.SOURCES:
        includes = [f"-I{path}" for path in (cuda_aot.CSRC, *TOOLKIT.include)]
        answer = subprocess.run(
            [f"{TOOLKIT.home}/bin/nvcc", "-std=c++20", "-M", *includes, str(source)], capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        headers = re.findall(r"\S+\.(?:h|cuh|hpp)\b", answer.stdout)
        assert any(header.endswith("common/floats.h") for header in headers)
        assert not [header for header in headers if "/torch/" in header or "/ATen/" in header]
