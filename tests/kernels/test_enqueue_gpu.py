"""The Triton enqueue_ on a device: what the interpreter cannot show besides what it can."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from enqueue_cases import LAYOUTS, Case, cases, check, same_bits
from hypothesis import given, settings

import ssl_fast
from ssl_fast import backends, checks, reference
from ssl_fast.kernels.enqueue import enqueue_

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA or ROCm device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 runs nothing on a device"),
]


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_reference(case):
    check(case, "cuda", interpreted=False)


@pytest.mark.parametrize("queue_dtype", checks.FLOATS)
@pytest.mark.parametrize("keys_dtype", checks.FLOATS)
def test_every_pair_of_dtypes(queue_dtype, keys_dtype):
    case = Case(size=37, dim=128, count=30, pointer=20, queue_dtype=queue_dtype, keys_dtype=keys_dtype)
    check(case, "cuda", interpreted=False)


@pytest.mark.parametrize("queue_layout", LAYOUTS)
@pytest.mark.parametrize("keys_layout", LAYOUTS)
def test_every_pair_of_layouts(queue_layout, keys_layout):
    case = Case(size=37, dim=128, count=30, pointer=20, queue_layout=queue_layout, keys_layout=keys_layout)
    check(case, "cuda", interpreted=False)


def test_many_programs_read_one_pointer():
    """65536 programs, far more than run at once: late ones start after early ones have ended."""
    queue, expected = (torch.zeros(300_000, 1024, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    queue_ptr, expected_ptr = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))
    for seed in range(20):
        keys = torch.full((65536, 1024), float(seed), dtype=torch.bfloat16, device="cuda")
        keys[:, 0] = torch.arange(65536, device="cuda") % 251
        enqueue_(queue, queue_ptr, keys)
        reference.enqueue_(expected, expected_ptr, keys)
        assert queue_ptr.equal(expected_ptr)
        assert same_bits(queue, expected)


def test_queue_chooses_it_and_does_not_wait():
    queue = ssl_fast.NegativeQueue(100, 16, seed=0).cuda()
    expected = ssl_fast.NegativeQueue(100, 16, seed=0).cuda()
    keys = torch.randn(33, 16, device="cuda")
    assert backends.choose("enqueue_", "cuda") == "triton"
    queue.enqueue_(keys)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        queue.enqueue_(keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with ssl_fast.backend("reference"):
        expected.enqueue_(keys)
        expected.enqueue_(keys)
    assert same_bits(queue.queue, expected.queue)
    assert queue.queue_ptr.equal(expected.queue_ptr)


def test_replays_in_a_graph():
    queue, expected = (torch.zeros(100, 16, device="cuda") for _ in range(2))
    queue_ptr, expected_ptr = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))
    keys = torch.randn(33, 16, device="cuda")
    enqueue_(queue, queue_ptr, keys)  # compiled and loaded before the capture
    reference.enqueue_(expected, expected_ptr, keys)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue_(queue, queue_ptr, keys)
    for _ in range(5):
        keys.normal_()
        graph.replay()
        reference.enqueue_(expected, expected_ptr, keys)
    assert same_bits(queue, expected)
    assert queue_ptr.equal(expected_ptr)


def test_offsets_beyond_32_bits():
    base = torch.zeros(2**31 + 8, dtype=torch.float16, device="cuda")
    far = base.as_strided((3, 4), (2**30, 1))
    values = torch.arange(1.0, 13, device="cuda").view(3, 4).half()
    enqueue_(far, torch.ones(1, dtype=torch.int64, device="cuda"), values)
    assert far.equal(values.roll(1, 0))
