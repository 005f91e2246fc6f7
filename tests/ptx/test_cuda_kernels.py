"""The CUDA C++ kernels compiled for sm_80 and simulated, against the reference and the oracle.

The tests of ema.cu are marked slow, and so is most of enqueue.cu's: nvcc takes seconds for each of the files.
"""

import itertools
import random

import numpy as np
import pytest
import torch

from tests.helpers import oracle

pytest.importorskip("triton", reason="triton is not installed, which bench.cuda_aot needs")

from ssl_fast import reference
from ssl_fast.tools import cuda_toolkit
from tests.helpers.averages import assert_averaged
from tests.helpers.strategies import DTYPES

from . import cuda
from .requirements import needs_triton

TOOLKIT, LACKING = cuda_toolkit.find()
pytestmark = [
    needs_triton,
    pytest.mark.skipif(TOOLKIT is None, reason=f"no CUDA compiler: {'; '.join(LACKING)}"),
]
PAIRS = list(itertools.product(DTYPES, DTYPES))
# Around a chunk of 4096 and the 16 bytes that are read at once.
SIZES = (1, 7, 16, 100, 4095, 4096, 4097, 9000)


def of_sizes(sizes, dtype, generator, offset=0):
    """Tensors that begin `offset` elements into their memory."""
    return [torch.randn(size + offset, generator=generator).to(dtype)[offset:] for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("target_dtype", "source_dtype"), PAIRS)
@pytest.mark.parametrize("momentum", [0.99, 1.0, torch.tensor(0.9), torch.tensor(0.5, dtype=torch.float64)], ids=repr)
def test_averages(target_dtype, source_dtype, offset, momentum):
    generator = torch.Generator().manual_seed(1)
    target = of_sizes(SIZES, target_dtype, generator, offset)
    source = of_sizes(SIZES, source_dtype, generator, offset)
    before = [(t.clone(), s.clone()) for t, s in zip(target, source, strict=True)]
    cuda.ema(target, source, momentum, seed=None, interleaved=2)
    for got, unchanged, (t, s) in zip(target, source, before, strict=True):
        assert torch.equal(unchanged, s)
        assert_averaged(got, t, s, float(momentum))


@pytest.mark.slow
@pytest.mark.parametrize(("target_dtype", "source_dtype"), PAIRS)
def test_averages_of_many_tensors(target_dtype, source_dtype):
    """More than a small table holds."""
    generator = torch.Generator().manual_seed(2)
    target, source = (of_sizes([3] * 130, dtype, generator) for dtype in (target_dtype, source_dtype))
    before = [t.clone() for t in target]
    cuda.ema(target, source, 0.97)
    for got, t, s in zip(target, before, source, strict=True):
        assert_averaged(got, t, s, 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("source_dtype", DTYPES)
@pytest.mark.parametrize("sizes", [SIZES, (3,) * 130], ids=["small table", "large table"])
def test_random_rounding(source_dtype, sizes):
    """One of the two neighbours in bfloat16, by the same numbers as the reference."""
    generator = torch.Generator().manual_seed(3)
    target = of_sizes(sizes, torch.bfloat16, generator)
    source = of_sizes(sizes, source_dtype, generator)
    seed = torch.tensor([987_654_321_987])
    wanted, before = [t.clone() for t in target], [t.clone() for t in target]
    reference.ema_update_(wanted, source, 0.99, seed)
    cuda.ema(target, source, 0.99, seed)
    got, expected = torch.cat(target).double(), torch.cat(wanted).double()
    average = 0.99 * torch.cat(before).double() + 0.01 * torch.cat(source).double()
    assert ((got - average).abs() <= average.abs() * torch.finfo(torch.bfloat16).eps + 1e-30).all()
    # float32 may differ in its last bit, which decides about one element in 2^16.
    assert (got != expected).double().mean() < 1e-3


@pytest.mark.slow
def test_integers_are_copied():
    dtypes = ((5, torch.int64), (5000, torch.int32), (77, torch.uint8), (3, torch.bool))
    target, source = ([torch.randint(-9, 9, (size,)).to(dtype) for size, dtype in dtypes] for _ in range(2))
    cuda.ema(target, source, 0.9)
    assert all(torch.equal(t, s) for t, s in zip(target, source, strict=True))


def laid_out(rows, columns, dtype, layout, generator):
    x = torch.randn(2 * rows + 1, 3 * columns + 1, generator=generator).mul(2).to(dtype)
    if layout == "steps":
        return x[1::2, 1::3][:rows, :columns]
    x = x[:rows, :columns].contiguous()
    return x.t().contiguous().t() if layout == "transposed" else x


LAYOUTS = ("contiguous", "transposed", "steps")
FAST = [(torch.float32, torch.float32, "contiguous"), (torch.bfloat16, torch.float32, "steps")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("queue_dtype", "keys_dtype", "layout"),
    [
        pytest.param(*pair, layout, marks=() if (*pair, layout) in FAST else pytest.mark.slow)
        for pair in PAIRS
        for layout in LAYOUTS
    ],
)
@pytest.mark.parametrize("normalize", [False, True], ids=["as they are", "unit rows"])
def test_enqueue(queue_dtype, keys_dtype, layout, normalize):
    seed = PAIRS.index((queue_dtype, keys_dtype)) * 8 + LAYOUTS.index(layout) * 2 + normalize
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for size, count in ((1, 7), (64, 120), (100, 64)):
        dim = choice.choice((1, 3, 40, 128, 129, 1025))
        start = choice.choice((0, size - 1, -3, 5 * size + 1, size // 2))
        queue = laid_out(size, dim, queue_dtype, layout, generator)
        keys = laid_out(count, dim, keys_dtype, layout, generator)
        pointer = torch.tensor([start])
        rows = np.stack(oracle.units(keys.double().numpy())) if normalize else keys.to(queue_dtype).double().numpy()
        # A pointer outside the queue counts modulo its rows.
        expected, end = oracle.enqueue(queue.double().numpy(), start % size, rows)
        cuda.enqueue(queue, pointer, keys, normalize, seed=seed + 1, interleaved=4)
        assert pointer.item() == end
        wide = torch.float64 if keys_dtype == torch.float64 else torch.float32
        allowed = 4 * torch.finfo(wide).eps + torch.finfo(queue_dtype).eps if normalize else 0
        atol = torch.finfo(queue_dtype).tiny
        np.testing.assert_allclose(queue.double().numpy(), expected, rtol=allowed, atol=atol)


@pytest.mark.slow
def test_every_kernel_is_understood():
    """No instruction of csrc/cuda is unknown to the simulator."""
    for source in ("ema", "enqueue"):
        for name in cuda.kernels(source):
            assert cuda.program(source, name).instructions
