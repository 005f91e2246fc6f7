"""cvt of the simulator against torch, numpy and numbers worked out by hand."""

import numpy as np
import pytest
import torch

from .requirements import needs_simulator
from .snippets import evaluate
from .test_simulator_floats import INFINITY, NAN, of_torch, same

pytestmark = needs_simulator


def every_float(step: int = 100_003) -> np.ndarray:
    """float32 numbers of all exponents, their neighbours of few bits among them."""
    bits = np.arange(0, 1 << 32, step, dtype=np.uint32)
    ties = (np.arange(0, 1 << 16, 13, dtype=np.uint32) << 16) + 0x8000
    return np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)


def test_float_to_16_bits():
    x = every_float()
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        got = of_torch(evaluate(f"cvt.rn.{name}.f32 %result, %a;", "u2", x), dtype).float().numpy()
        same(got, torch.from_numpy(x).to(dtype).float().numpy())
        # Towards zero: no further from it than x, and the next number would be.
        bits = evaluate(f"cvt.rz.{name}.f32 %result, %a;", "u2", x)
        cut, next_up = (np.abs(of_torch(b, dtype).float().numpy()) for b in (bits, bits + np.uint16(1)))
        finite = np.isfinite(x)
        assert (cut[finite] <= np.abs(x[finite])).all()
        assert (next_up[finite] > np.abs(x[finite])).all()


def test_pairs_of_16_bits():
    x = every_float(1_000_003)
    y = x[::-1].copy()
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        got = evaluate(f"cvt.rn.{name}x2.f32 %result, %a, %b;", "u4", x, y)
        for half, source in ((got >> 16, x), (got & 0xFFFF, y)):  # the first goes to the upper half
            same(
                of_torch(half.astype(np.uint16), dtype).float().numpy(),
                torch.from_numpy(source).to(dtype).float().numpy(),
            )


def test_16_bits_to_wider_types():
    bits = np.arange(0, 1 << 16, dtype=np.uint16)
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        wanted = of_torch(bits, dtype).float().numpy()
        same(evaluate(f"cvt.f32.{name} %result, %a;", "f4", bits), wanted)
        same(evaluate(f"cvt.f64.{name} %result, %a;", "f8", bits), wanted)


def test_float_to_tf32():
    one, ulp = np.float32(1), np.float32(2.0**-10)
    x = np.array([one + ulp / 2, -one - ulp / 2, one + ulp / 4, one + 3 * ulp / 2, INFINITY, NAN], np.float32)
    # Ties go away from zero with rna, to the even neighbour with rn.
    same(evaluate("cvt.rna.tf32.f32 %result, %a;", "f4", x), [one + ulp, -one - ulp, one, one + 2 * ulp, INFINITY, NAN])
    same(evaluate("cvt.rn.tf32.f32 %result, %a;", "f4", x), [one, -one, one, one + 2 * ulp, INFINITY, NAN])
    rounded = evaluate("cvt.rna.tf32.f32 %result, %a;", "f4", every_float())
    assert (rounded[np.isfinite(rounded)].view(np.uint32) & 0x1FFF == 0).all()


def test_between_float_and_double():
    x = np.concatenate(
        [np.random.default_rng(0).standard_normal(500) * np.logspace(-50, 50, 500), [NAN, 1e300, -1e-320]]
    )
    with np.errstate(over="ignore"):
        same(evaluate("cvt.rn.f32.f64 %result, %a;", "f4", x), x.astype(np.float32))
    y = every_float(10_000_019)
    with np.errstate(invalid="ignore"):
        same(evaluate("cvt.f64.f32 %result, %a;", "f8", y), y.astype(np.float64))
    third = np.array([1 / 3, -1 / 3])
    low, high = np.float32(0.33333331), np.float32(0.33333334)
    same(evaluate("cvt.rz.f32.f64 %result, %a;", "f4", third), [low, -low])
    same(evaluate("cvt.rm.f32.f64 %result, %a;", "f4", third), [low, -high])
    same(evaluate("cvt.rp.f32.f64 %result, %a;", "f4", third), [high, -low])


def test_rounding_to_integers():
    x = np.array([0.5, 1.5, -0.5, -1.5, 2.4, -2.6, 1e10, -0.0, INFINITY], np.float32)
    for mode, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        same(evaluate(f"cvt.{mode}.f32.f32 %result, %a;", "f4", x), function(x))
        wanted = np.clip(function(x.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
        assert evaluate(f"cvt.{mode}.s32.f32 %result, %a;", "i4", x).tolist() == wanted.tolist()


def test_float_to_integer_out_of_range():
    x = np.array([3e9, -3e9, 1e20, -1e20, INFINITY, NAN], np.float32)
    assert evaluate("cvt.rzi.s32.f32 %result, %a;", "i4", x).tolist() == [2**31 - 1, -(2**31)] * 2 + [2**31 - 1, 0]
    assert evaluate("cvt.rzi.u32.f32 %result, %a;", "u4", x).tolist() == [3 * 10**9, 0, 2**32 - 1, 0, 2**32 - 1, 0]
    got = evaluate("cvt.rzi.s64.f32 %result, %a;", "i8", x).tolist()
    assert got == [3 * 10**9, -3 * 10**9, 2**63 - 1, -(2**63), 2**63 - 1, -(2**63)]
    # NaN gives 0, but the smallest integer where either type has 64 bits.
    assert evaluate("cvt.rzi.s32.f64 %result, %a;", "i4", np.array([NAN])).tolist() == [-(2**31)]
    assert evaluate("cvt.rzi.s16.f32 %h0, %a; cvt.s32.s16 %result, %h0;", "i4", x).tolist()[:2] == [32767, -32768]


@pytest.mark.parametrize("source", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_between_integers(source):
    dtype = np.dtype(f"{'i' if source[0] == 's' else 'u'}{int(source[1:]) // 8}")
    limits = np.iinfo(dtype)
    x = np.array([0, 1, 5, 100, limits.max, limits.min, limits.max // 2 + 1], dtype)
    values = x.tolist()
    for target in ("u16", "s16", "u32", "s32", "u64", "s64"):
        bits, signed = int(target[1:]), target[0] == "s"
        got = evaluate(f"cvt.{target}.{source} %result, %a;", f"u{bits // 8}", x).tolist()
        assert got == [value % 2**bits for value in values], target
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        got = evaluate(f"cvt.sat.{target}.{source} %result, %a;", f"u{bits // 8}", x).tolist()
        assert got == [min(max(value, low), high) % 2**bits for value in values], target


def test_integers_to_floats():
    x = np.array([0, 1, -1, 2**24 + 1, -(2**24) - 3, 2**31 - 1, 2049, 2051], np.int32)
    same(evaluate("cvt.rn.f32.s32 %result, %a;", "f4", x), x.astype(np.float32))
    same(evaluate("cvt.rn.f64.u32 %result, %a;", "f8", x), x.view(np.uint32).astype(np.float64))
    same(evaluate("cvt.rn.f16.s32 %result, %a;", "f2", x[-2:].copy()), x[-2:].astype(np.float16))
    big = np.array([2**63 + 1, 2**53 + 1], np.uint64)
    same(evaluate("cvt.rn.f64.u64 %result, %a;", "f8", big), big.astype(np.float64))
    same(evaluate("cvt.rn.f32.u64 %result, %a;", "f4", big), big.astype(np.float32))
