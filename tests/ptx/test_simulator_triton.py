"""Triton kernels, compiled for sm_80 and sm_90 and simulated, against PyTorch."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from ssl_fast.kernels.tuning import ahead_of_time

from . import small_kernels as kernels
from .compile import compile_to_ptx, parameters, simulate, span, union
from .requirements import needs_triton
from .simulator import ReportKind, load

pytestmark = needs_triton

DEVICES = ("sm_80", "sm_90")
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# Before 3.8 Triton puts no fence between a cp.async and the wgmma that reads what it brought.
UNFENCED = {ReportKind.UNFENCED_PROXY} if VERSION < (3, 8) else set()


def run(kernel, grid, *arguments, device="sm_80", num_warps=4, **options):
    result = simulate(kernel, grid, *arguments, device=device, num_warps=num_warps, **options)
    assert {report.kind for report in result.reports} <= UNFENCED, result.reports
    return result


def fast(*cases):
    """Parametrises by device and case: the first of the cases is fast on sm_80, the rest are slow."""
    params = []
    for device, (index, case) in itertools.product(DEVICES, enumerate(cases)):
        marks = () if device == "sm_80" and index == 0 else pytest.mark.slow
        params.append(pytest.param(device, case, marks=marks))
    return pytest.mark.parametrize(("device", "case"), params)


@fast((1000, torch.float32), *itertools.product((1, 5, 1000), (torch.float64, torch.float16, torch.bfloat16)))
def test_sums(device, case):
    n, dtype = case
    x, y = torch.randn(2, n).to(dtype)
    out = torch.full((n,), float("nan"), dtype=dtype)
    run(kernels.add, (-(-n // 256),), x, y, out, n, device=device, block=256)
    assert torch.equal(out, x + y)


@fast(200, 7, 64)
def test_softmax(device, case):
    x = torch.randn(3, case) * 5
    out = torch.empty(3, case)
    run(kernels.softmax, (3,), x, out, case, device=device, width=256)
    torch.testing.assert_close(out, x.double().softmax(1).float(), rtol=1e-6, atol=1e-7)


def cut(x):
    """What a matrix unit reads of float32 numbers."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


SHAPES = ((32, 64, 64, 32), (16, 16, 16, 16), (64, 128, 96, 32))
KINDS = {
    "ieee": (torch.float32, "ieee", 1e-6),
    "tf32": (torch.float32, "tf32", 1e-6),
    "tf32x3": (torch.float32, "tf32x3", 1e-5),
    "bf16": (torch.bfloat16, "ieee", 1e-6),
    "fp16": (torch.float16, "ieee", 1e-6),
    "fp64": (torch.float64, "ieee", 1e-14),
}


def unit_of(kind, device, rows):
    """What sums the products: wgmma takes 64 rows at a time."""
    if kind == "ieee":
        return "fma.rn.f32"
    return "wgmma.mma_async" if device == "sm_90" and rows >= 64 and kind != "fp64" else "mma.sync"


def matrix_products():
    for kind, device, shape, ta, tb, warps in itertools.product(KINDS, DEVICES, SHAPES, (0, 1), (0, 1), (4, 8)):
        if kind == "fp64" and shape[0] == 64:
            continue  # it takes minutes
        plain = (ta, tb, warps) == (0, 0, 4)
        # On sm_90, 64 rows are the fewest for wgmma.
        quick = plain and kind in ("tf32", "bf16", "fp64") and shape == SHAPES[0 if device == "sm_80" else 2]
        yield pytest.param(kind, device, shape, ta, tb, warps, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("kind", "device", "shape", "ta", "tb", "warps"), list(matrix_products()))
def test_matrix_products(kind, device, shape, ta, tb, warps):
    dtype, precision, bound = KINDS[kind]
    m, n, depth, block = shape
    a, b = torch.randn(m, depth).to(dtype), torch.randn(depth, n).to(dtype)
    out = torch.full((m, n), float("nan"), dtype=torch.float64 if kind == "fp64" else torch.float32)
    factors = a.t().contiguous() if ta else a, b.t().contiguous() if tb else b
    result = run(
        kernels.matmul, (1,), *factors, out, depth, device=device, num_warps=warps, num_stages=3,
        m=m, n=n, block=block, transpose_a=ta, transpose_b=tb, precision=precision,
    )  # fmt: skip
    exact = cut(a).double() @ cut(b).double() if kind == "tf32" else a.double() @ b.double()
    assert ((out - exact).abs().max() / exact.abs().max()).item() <= bound
    assert any(name.startswith(unit_of(kind, device, m)) for name in result.histogram), result.histogram


@fast(torch.float32, torch.float16, torch.float64, torch.int8)
def test_transposition(device, case):
    x = (torch.randn(64, 32) * 20).to(case)
    out = torch.zeros(32, 64, dtype=case)
    run(kernels.transpose, (1,), x, out, device=device, m=64, n=32)
    assert torch.equal(out, x.t())


@pytest.mark.slow
@pytest.mark.parametrize(("device", "case"), [(device, 512) for device in DEVICES])
def test_cumulative_sums_and_sorting(device, case):
    x, keys = torch.randn(case), torch.randint(-1000, 1000, (case,), dtype=torch.int32)
    sums, ordered = torch.empty(case), torch.empty_like(keys)
    run(kernels.sum_and_sort, (1,), x, sums, keys, ordered, device=device, n=case)
    torch.testing.assert_close(sums, x.double().cumsum(0).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(ordered, keys.sort()[0])


@fast(512)
def test_casts(device, case):
    edges = [0.0, -0.0, 1e-30, 3e-8, -6e-8, 65504.0, 65519.0, 65520.0, 1e30, float("inf"), -float("inf"), 2.5]
    x = torch.cat([torch.randn(case - 12) * torch.logspace(-9, 9, case - 12), torch.tensor(edges)])
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.float32)
    outs = half, bfloat, double, integer, long, back = [torch.empty(case, dtype=dtype) for dtype in dtypes]
    run(kernels.cast, (1,), x, *outs, device=device, n=case)
    assert torch.equal(half, x.half())
    assert torch.equal(bfloat, x.bfloat16())
    assert torch.equal(double, x.double())
    assert torch.equal(back, x.half().float() + x.bfloat16().float())
    for result, limit in ((integer, 2.0**31), (long, 2.0**62)):  # what C++ defines
        inside = x.abs() < limit
        assert torch.equal(result[inside], x[inside].to(result.dtype))


@fast(torch.int32, torch.int64)
def test_integers(device, case):
    x = torch.randint(-(2**30), 2**30, (256,), dtype=case)
    y = torch.randint(1, 50, (256,), dtype=case) * torch.tensor([-1, 1]).repeat(128).to(case)
    out = torch.empty(7, 256, dtype=case)
    run(kernels.integers, (1,), x, y, out, device=device, n=256)
    quotient = torch.div(x, y, rounding_mode="trunc")
    wanted = (x * y, quotient, x - quotient * y, x >> 3, (x ^ y) & 0xFFFF, torch.maximum(x, y), torch.minimum(x, y))
    assert torch.equal(out, torch.stack(wanted))


@fast(torch.float32, torch.float64)
def test_functions(device, case):
    x = torch.cat([torch.randn(128, dtype=case) * 10, torch.linspace(0.5, 1.5, 128, dtype=case)])
    out = torch.empty(6, 256, dtype=case)
    run(kernels.functions, (1,), x, out, device=device, n=256)
    y = x.double()
    wanted = torch.stack([y.exp2(), y.abs().log2(), y.abs().log(), y.abs().sqrt(), y.exp(), 1 / y])
    single = case == torch.float32
    # exp is exp2 of a rounded product. Logarithms near 1 are exact in absolute terms alone.
    torch.testing.assert_close(out.double(), wanted, rtol=2e-6 if single else 1e-15, atol=1e-6 if single else 3e-15)


@fast(32)
def test_a_loop_whose_length_the_data_decide(device, case):
    def steps(n):
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    x, out = torch.arange(1, case + 1, dtype=torch.int32), torch.zeros(case, dtype=torch.int32)
    run(kernels.collatz, (case,), x, out, device=device)
    assert out.tolist() == [steps(n) for n in range(1, case + 1)]


@fast(20)
def test_atomics_between_blocks(device, case):
    counter, out = torch.zeros(1, dtype=torch.int64), torch.zeros(case, dtype=torch.int64)
    run(kernels.take_number, (case,), counter, out, device=device, how={"seed": 3, "interleaved": 4})
    assert counter.item() == case
    assert sorted(out.tolist()) == list(range(case))
    assert out.tolist() != list(range(case))


def test_devices_have_their_own_ptx_and_leave_whole_compilations_alone():
    """Caches, in the process and on disk, tell the devices apart, and kernels without machine code from others."""
    x, y, out = torch.randn(3, 64)
    arguments, options = (x, y, out, 64), {"block": 64, "num_warps": 4}
    texts = {device: compile_to_ptx(kernels.add, arguments, (1,), options, device).ptx for device in DEVICES}
    assert ".target sm_80" in texts["sm_80"]
    assert ".target sm_90" in texts["sm_90"]
    whole = ahead_of_time.compiled(ahead_of_time.Launch(kernels.add, (1,), arguments, options), "sm_80")
    assert whole.registers > 0
    assert compile_to_ptx(kernels.add, arguments, (1,), options, "sm_80").ptx == texts["sm_80"]


def test_parameters_lie_as_the_kernel_reads_them():
    x, y, out = torch.randn(3, 80)
    arguments, options = (x, y, out, 80), {"block": 64, "num_warps": 4}
    compiled = compile_to_ptx(kernels.add, arguments, (1,), options, "sm_80")
    packed, regions = parameters(compiled, kernels.add, arguments, options)
    assert len(packed) == load(compiled.ptx).parameter_bytes
    addresses = [int.from_bytes(packed[i : i + 8], "little") for i in (0, 8, 16)]
    assert addresses == [tensor.data_ptr() for tensor in (x, y, out)]
    assert int.from_bytes(packed[24:28], "little") == 80
    assert regions == [span(tensor) for tensor in (x, y, out)]


def test_spans_of_tensors():
    x = torch.zeros(6, 4)
    begin = x.data_ptr()
    assert span(x) == (begin, begin + 96)
    assert span(x[1:3, ::2]) == (begin + 16, begin + 16 + 28)  # 2 rows of 4, of the last up to column 2
    assert span(x.t()) == span(x)
    first, last = span(x[:0])
    assert first == last
    assert union([(8, 12), (0, 4), (2, 6), (20, 20)]) == [(0, 6), (8, 12)]
