"""The Triton enqueue_ on CPU tensors, in Triton's interpreter; conftest.py says how this file is run.

The interpreter runs one program after another. What it cannot show, programs side by side and the
rounding to bfloat16, is in test_enqueue_gpu.py.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter

import ssl_fast
from ssl_fast import checks
from ssl_fast.kernels import enqueue
from ssl_fast.operators import backends
from tests.helpers.enqueue_cases import LAYOUTS, Case, cases, check

# NumPy, which the interpreter casts with, warns where a key is too large for the queue's dtype.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")

SIZES = {"size": 37, "dim": 128, "count": 30, "pointer": 20}  # wraps, four programs


@settings(max_examples=150, deadline=None)
@given(cases())
@example(Case(size=1, dim=1, count=1, pointer=0))
@example(Case(size=10, dim=4, count=10, pointer=0))  # exactly full: the pointer is 0 again
@example(Case(size=10, dim=4, count=10, pointer=3))
@example(Case(size=10, dim=4, count=37, pointer=9))  # more keys than rows
@example(Case(size=64, dim=128, count=33, pointer=63))
@example(Case(size=5, dim=4100, count=3, pointer=4))  # several programs a row
def test_equals_the_reference(case):
    check(case)


@pytest.mark.parametrize("queue_dtype", checks.FLOATS)
@pytest.mark.parametrize("keys_dtype", checks.FLOATS)
def test_every_pair_of_dtypes(queue_dtype, keys_dtype):
    check(Case(**SIZES, queue_dtype=queue_dtype, keys_dtype=keys_dtype))


@pytest.mark.parametrize("queue_layout", LAYOUTS)
@pytest.mark.parametrize("keys_layout", LAYOUTS)
def test_every_pair_of_layouts(queue_layout, keys_layout):
    check(Case(**SIZES, queue_layout=queue_layout, keys_layout=keys_layout))


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 30, 37, 100]), st.integers(0, 36))
def test_any_order_of_programs(random, count, pointer):
    """On a device the programs start and end in any order."""
    builder = interpreter.interpreter_builder
    in_order = builder.set_grid_idx
    order = {}

    def shuffled(x, y, z):
        if not order:
            programs = [(i, j) for i in range(builder.grid_dim[0]) for j in range(builder.grid_dim[1])]
            order.update(zip(programs, random.sample(programs, len(programs)), strict=True))
        in_order(*order[x, y], z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_idx", shuffled)
        check(Case(size=37, dim=1500, count=count, pointer=pointer))
    assert len(order) > 1


def queues(**arguments):
    return ssl_fast.NegativeQueue(**arguments, seed=0), ssl_fast.NegativeQueue(**arguments, seed=0)


def test_queue_reaches_the_kernel(monkeypatch):
    grids, kernel = [], enqueue._enqueue_kernel

    class Counted:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(enqueue, "_enqueue_kernel", Counted())
    ours, theirs = queues(size=20, dim=5)
    generator = torch.Generator().manual_seed(1)
    for count in (1, 7, 19, 20, 21, 64):
        keys = torch.randn(count, 5, generator=generator).requires_grad_()
        with ssl_fast.backend("triton"):
            ours.enqueue_(keys)
        with ssl_fast.backend("reference"):
            theirs.enqueue_(keys)
        assert ours.queue.equal(theirs.queue)
        assert ours.queue_ptr.equal(theirs.queue_ptr)
    assert len(grids) == 6


def test_interpreter_is_never_chosen_by_itself():
    assert backends.choose("enqueue_", "cpu") != "triton"


def test_refused_keys_change_nothing():
    ours, untouched = queues(size=4, dim=3)
    with ssl_fast.backend("triton"), pytest.raises(ValueError, match=r"keys: expected 3 columns"):
        ours.enqueue_(torch.ones(2, 4))
    assert ours.queue.equal(untouched.queue)
    assert ours.queue_ptr.equal(untouched.queue_ptr)


def test_autograd_sees_the_write():
    """A backward that needs the overwritten rows is an error, as it is with the reference."""
    queue = ssl_fast.NegativeQueue(4, 3)
    query = torch.ones(2, 3, requires_grad=True)
    loss = (query @ queue.queue.T).sum()
    with ssl_fast.backend("triton"):
        queue.enqueue_(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.slow
def test_offsets_beyond_32_bits():
    """Rows that lie 2^30 elements apart; the memory between them is reserved, 4 GB."""
    base = torch.zeros(2**31 + 8, dtype=torch.float16)
    far = base.as_strided((3, 4), (2**30, 1))
    near = torch.zeros(3, 4, dtype=torch.float16)
    values = torch.arange(1.0, 13).view(3, 4).half()
    for queue, keys, pointer in ((far, values, 1), (near, far, 0)):
        enqueue.enqueue_(queue, torch.tensor([pointer]), keys)
    assert far.equal(values.roll(1, 0))
    assert near.equal(far)
