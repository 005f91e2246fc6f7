"""What enters a tensor core in float32 is a TF32 number, rounded to the nearest (precision.to_tf32).

The interpreter multiplies in float64, so these tests look at the operands; tests/ptx computes losses with operands
whose low bits are cut off, as tensor cores do.
"""

import pytest
import torch
import triton
import triton.language as tl

from ssl_fast.kernels import info_nce
from ssl_fast.kernels.engine import unit_rows, weighted_rows
from ssl_fast.kernels.engine.precision import to_tf32
from ssl_fast.kernels.engine.tile import add_weighted_rows
from tests.helpers.strategies import embeddings

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), 3.4028235e38, 1e-42, 1.0 + 2**-11, 1.0 + 2**-11 - 2**-23]


@pytest.fixture(params=["ieee", "tf32"])
def precision(request):
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, request.param
    yield request.param
    settings.fp32_precision = before


def nearest_tf32(x: torch.Tensor) -> torch.Tensor:
    """The nearest number with 11 significant bits, ties away from zero, computed in float64."""
    _, exponent = torch.frexp(x.double())
    # Below 2^-126 numbers are subnormal and have fewer digits.
    unit = torch.ldexp(torch.ones_like(x.double()), exponent.clamp_min(-125) - 11)
    magnitude = torch.floor(x.double().abs() / unit + 0.5) * unit
    return torch.where(x.isfinite(), torch.copysign(magnitude, x.double()), x.double()).float()


def is_tf32(x: torch.Tensor) -> torch.Tensor:
    return (x.contiguous().view(torch.int32) & 0x1FFF) == 0


@triton.jit
def _round_kernel(x, out, N: tl.constexpr):
    place = tl.arange(0, N)
    tl.store(out + place, to_tf32(tl.load(x + place)))


@triton.jit
def _weights_kernel(weights, out, N: tl.constexpr, PRECISION: tl.constexpr):
    """weights @ the unit matrix, which add_weighted_rows gives back as they entered the product."""
    i, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    unit = tl.where(i == k, 1.0, 0.0)
    result = add_weighted_rows(tl.zeros((N, N), tl.float32), tl.load(weights + i * N + k), None, unit, PRECISION)
    tl.store(out + i * N + k, result)


def test_rounds_to_the_nearest():
    x = torch.cat([torch.tensor(SPECIAL), torch.randn(504) * torch.logspace(-20, 20, 504)])
    out = torch.empty_like(x)
    _round_kernel[(1,)](x, out, N=512)
    assert torch.equal(out, nearest_tf32(x))
    assert is_tf32(out[out.isfinite()]).all()


def test_every_nan_stays_nan():
    """Rounding adds to the bits; those of the NaN that devices make, all ones, must not become a number."""
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, 0x7F800001, -1, -0x400000, -0x7FFFFF, 0x7FFFF000, 0x7F801000])
    x = bits.to(torch.int32).view(torch.float32)
    out = torch.empty_like(x)
    _round_kernel[(1,)](x, out, N=8)
    assert x.isnan().all()
    assert out.isnan().all()


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_rounded_where_tensor_cores_take_them(precision, normalize):
    x = embeddings(20, 48, torch.float32, "ordinary", 0)
    prepared = unit_rows.prepare([x], torch.float32, x, normalize)
    alone = unit_rows.prepare([x], torch.float32, x, normalize, on_tensor_cores=False)
    assert (prepared.kind, alone.kind) == (precision, "ieee")
    assert not is_tf32(alone.values).all()
    assert torch.equal(prepared.values, nearest_tf32(alone.values) if precision == "tf32" else alone.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_rows_beside_a_float32_queue_are_rounded_at_any_setting(precision, dtype):
    x = embeddings(20, 64, dtype, "ordinary", 0)
    queue = torch.nn.functional.normalize(torch.randn(70, 64), dim=1)
    query = unit_rows.prepare([x], torch.float32, x)
    keys, in_place = unit_rows.prepare_keys(queue, False, torch.float32, x)
    assert query.kind == keys.kind == "tf32"
    # A half row is a TF32 number already; as a unit row it would be rounded.
    assert query.factors is not None
    assert is_tf32(query.values).all()
    assert torch.equal(query.values, unit_rows.prepare([x], dtype, x).values.float())
    assert not in_place
    assert torch.equal(keys.values, nearest_tf32(queue))


def test_a_float32_queue_is_read_in_place_by_ieee_products_only(precision):
    x, queue = torch.randn(20, 64), torch.nn.functional.normalize(torch.randn(70, 64), dim=1)
    keys, in_place = unit_rows.prepare_keys(queue, False, torch.float32, x)
    assert in_place == (precision == "ieee")
    assert (keys.values.data_ptr() == queue.data_ptr()) == in_place


def test_weights_are_rounded(precision):
    weights = torch.rand(16, 16) * torch.logspace(-8, 8, 16)
    out = torch.empty_like(weights)
    _weights_kernel[(1,)](weights, out, N=16, PRECISION=precision)
    assert torch.equal(out, nearest_tf32(weights) if precision == "tf32" else weights)


def test_weights_of_wide_rows_are_rounded(precision, monkeypatch):
    """Beyond table.FUSED_WIDTH the weights go through memory, to a product of the library's."""
    operands = []
    product = weighted_rows._product
    monkeypatch.setattr(weighted_rows, "_product", lambda a, b: operands.append(a) or product(a, b))
    query, key = (embeddings(20, 300, torch.float32, "ordinary", seed) for seed in (0, 1))
    queue = torch.nn.functional.normalize(torch.randn(70, 300), dim=1)
    info_nce.info_nce(query, key, queue, False, 10.0, None, 1, False, True)
    rows_of_queries, weights = operands
    assert weights.shape == (20, 70)
    assert is_tf32(rows_of_queries).all() == is_tf32(weights).all() == (precision == "tf32")


def test_paired_negatives_keep_all_digits(precision):
    """Their products are sums along rows, in float32 at any setting."""
    query, key = (embeddings(6, 32, torch.float32, "ordinary", seed) for seed in (0, 1))
    negatives = torch.randn(6, 5, 32)
    loss = info_nce.info_nce(query, key, negatives, True, 10.0, None, 1, False, True)[0]
    q, k, n = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (query, key, negatives))
    logits = torch.cat([(q * k).sum(1, keepdim=True), (n @ q[:, :, None])[:, :, 0]], 1) / 0.1
    exact = (logits.logsumexp(1) - logits[:, 0]).mean()
    assert abs(loss.double() - exact) <= 2e-6 * exact
