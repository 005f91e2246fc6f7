"""The Triton kernels, compiled for devices that are not here: what they cost and that they stay within limits."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
import aot

from ssl_fast.kernels import enqueue

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing"),
]


@pytest.fixture(autouse=True)
def compile_afresh(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def enqueue_compiled(monkeypatch, device, queue, keys):
    pointer = torch.zeros(1, dtype=torch.int64)
    launches = aot.launches(monkeypatch, enqueue, lambda: enqueue.enqueue_(queue, pointer, keys))
    assert len(launches) == 1
    return aot.compiled(launches[0], device)


def check_limits(compiled, device):
    assert compiled.local_bytes == 0  # nothing spilled
    assert compiled.shared_bytes <= aot.SHARED_LIMIT[device]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", aot.TARGETS)
def test_enqueue_moves_rows_128_bits_at_a_time(monkeypatch, device, dtype):
    compiled = enqueue_compiled(
        monkeypatch, device, torch.zeros(4096, 128, dtype=dtype), torch.zeros(256, 128, dtype=dtype)
    )
    check_limits(compiled, device)
    # 1024 elements over four warps; on gfx942, whose warps are twice as wide, a thread has four elements.
    width = 64 if device == "gfx942" and dtype == torch.bfloat16 else 128
    assert set(compiled.load_bits) == {width}
    assert set(compiled.store_bits) == {width}
    assert compiled.registers <= 40  # so 1536 threads fit on a multiprocessor of 65536 registers


@pytest.mark.parametrize("device", aot.TARGETS)
def test_enqueue_odd_rows_that_are_cast(monkeypatch, device):
    """The most work an element: double to half, D not a multiple of anything, both tensors strided."""
    queue = torch.zeros(129, 4096, dtype=torch.float16).T
    keys = torch.zeros(64, 3 * 129, dtype=torch.float64)[:, ::3]
    compiled = enqueue_compiled(monkeypatch, device, queue, keys)
    check_limits(compiled, device)
    # The mask and the strides forbid wide accesses: what is seen here shows that widths are read right.
    assert set(compiled.load_bits) == {64}
    assert set(compiled.store_bits) == {16}
