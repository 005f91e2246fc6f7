"""enqueue_ on a device, in CUDA C++ and in Triton: what the host and the interpreter cannot show besides."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from hypothesis import given, settings

import ssl_fast
from bench.gpu.timing import graph_of
from ssl_fast import checks, reference
from tests.helpers.backends import every_backend
from tests.helpers.enqueue_cases import LAYOUTS, Case, cases, check, same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA or ROCm device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 runs nothing on a device"),
]
by_both = every_backend("enqueue_", but=("reference", "cpu"))


def operator(backend):
    return torch.ops.ssl_fast.triton_enqueue_ if backend == "triton" else torch.ops.ssl_fast.enqueue_


@by_both
@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_reference(backend, case):
    check(case, "cuda", interpreted=False, run=operator(backend))


@pytest.mark.quick
@by_both
@pytest.mark.parametrize("queue_dtype", checks.FLOATS)
@pytest.mark.parametrize("keys_dtype", checks.FLOATS)
def test_every_pair_of_dtypes(backend, queue_dtype, keys_dtype):
    case = Case(size=37, dim=128, count=30, pointer=20, queue_dtype=queue_dtype, keys_dtype=keys_dtype)
    check(case, "cuda", interpreted=False, run=operator(backend))


@by_both
@pytest.mark.parametrize("queue_layout", LAYOUTS)
@pytest.mark.parametrize("keys_layout", LAYOUTS)
def test_every_pair_of_layouts(backend, queue_layout, keys_layout):
    case = Case(size=37, dim=128, count=30, pointer=20, queue_layout=queue_layout, keys_layout=keys_layout)
    check(case, "cuda", interpreted=False, run=operator(backend))


@by_both
def test_many_programs_read_one_pointer(backend):
    """Far more blocks than run at once: late ones start after early ones have ended."""
    queue, expected = (torch.zeros(300_000, 1024, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    queue_ptr, expected_ptr = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))
    for seed in range(20):
        keys = torch.full((65536, 1024), float(seed), dtype=torch.bfloat16, device="cuda")
        keys[:, 0] = torch.arange(65536, device="cuda") % 251
        operator(backend)(queue, queue_ptr, keys)
        reference.enqueue_(expected, expected_ptr, keys)
        assert queue_ptr.equal(expected_ptr)
        assert same_bits(queue, expected)


@pytest.mark.quick
@by_both
def test_the_queue_does_not_wait(backend):
    queue = ssl_fast.NegativeQueue(100, 16, seed=0).cuda()
    expected = ssl_fast.NegativeQueue(100, 16, seed=0).cuda()
    keys = torch.randn(33, 16, device="cuda")
    with ssl_fast.backend(backend):
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


@pytest.mark.quick
@by_both
@pytest.mark.parametrize("normalize", [False, True])
def test_replays_in_a_graph(backend, normalize):
    queue, expected = (torch.zeros(100, 16, device="cuda") for _ in range(2))
    queue_ptr, expected_ptr = (torch.zeros(1, dtype=torch.int64, device="cuda") for _ in range(2))
    keys = torch.randn(33, 16, device="cuda")
    replay = graph_of(lambda: operator(backend)(queue, queue_ptr, keys, normalize))
    for x in (queue, queue_ptr):
        x.zero_()
    for _ in range(5):
        keys.normal_()
        replay()
        reference.enqueue_(expected, expected_ptr, keys, normalize)
    torch.testing.assert_close(queue, expected, rtol=1e-6 if normalize else 0, atol=0)
    assert queue_ptr.equal(expected_ptr)


@by_both
def test_offsets_beyond_32_bits(backend):
    base = torch.zeros(2**31 + 8, dtype=torch.float16, device="cuda")
    far = base.as_strided((3, 4), (2**30, 1))
    values = torch.arange(1.0, 13, device="cuda").view(3, 4).half()
    operator(backend)(far, torch.ones(1, dtype=torch.int64, device="cuda"), values)
    assert far.equal(values.roll(1, 0))
