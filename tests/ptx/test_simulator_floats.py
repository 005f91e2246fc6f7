"""Floating-point instructions of the simulator against numpy, torch and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from .requirements import needs_simulator
from .snippets import evaluate

pytestmark = needs_simulator

NAN, INFINITY = float("nan"), float("inf")
FINITE = [0.0, -0.0, 1.0, -1.0, 1.5, -3.25, 1 / 3, 1e-3, 65504.0, 1e-7, 1e-40, -1e-42, 3e38]
SPECIAL = [*FINITE, INFINITY, -INFINITY, NAN]


def pairs(dtype, values=SPECIAL):
    with np.errstate(over="ignore"):
        columns = np.array(list(itertools.product(values, values))).astype(dtype).T
    return columns[0].copy(), columns[1].copy()


def same(got, wanted):
    """Equal, with the sign of zeros; all NaN are one."""
    with np.errstate(invalid="ignore"):
        wanted = np.asarray(wanted, got.dtype)
    equal = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
    assert (equal | (np.isnan(got) & np.isnan(wanted))).all(), (got[~equal], wanted[~equal])


def of_torch(bits, dtype):
    """A torch tensor of 16-bit numbers from their patterns."""
    return torch.from_numpy(bits.view(np.int16).copy()).view(dtype)


def patterns(tensor):
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic(dtype):
    a, b = pairs(dtype)
    bits = 8 * np.dtype(dtype).itemsize
    for name in ("add", "sub", "mul", "div.rn"):
        with np.errstate(all="ignore"):
            wanted = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div.rn": np.divide}[name](a, b)
        same(evaluate(f"{name}.f{bits} %result, %a, %b;", dtype, a, b), wanted)


@pytest.mark.parametrize("bits", [32, 64])
def test_minimum_and_maximum(bits):
    dtype = f"f{bits // 8}"
    a = np.array([1, NAN, 2, NAN, 0.0, -0.0, -INFINITY], dtype)
    b = np.array([2, 1, NAN, NAN, -0.0, 0.0, 3], dtype)
    same(evaluate(f"min.f{bits} %result, %a, %b;", dtype, a, b), [1, 1, 2, NAN, -0.0, -0.0, -INFINITY])
    same(evaluate(f"max.f{bits} %result, %a, %b;", dtype, a, b), [2, 1, 2, NAN, 0.0, 0.0, 3])
    if bits == 32:
        same(evaluate("min.NaN.f32 %result, %a, %b;", dtype, a, b), [1, NAN, NAN, NAN, -0.0, -0.0, -INFINITY])
        same(evaluate("max.NaN.f32 %result, %a, %b;", dtype, a, b), [2, NAN, NAN, NAN, 0.0, 0.0, 3])


def test_subnormal_numbers_are_flushed_where_asked():
    a, b = np.array([1e-40, -1e-40, 2e-38], np.float32), np.array([2.0, 2.0, 0.25], np.float32)
    same(evaluate("mul.f32 %result, %a, %b;", "f4", a, b), a * b)
    same(evaluate("mul.ftz.f32 %result, %a, %b;", "f4", a, b), [0.0, -0.0, 0.0])
    same(evaluate("add.ftz.f32 %result, %a, %a;", "f4", a), [0.0, -0.0, 4e-38])
    same(evaluate("setp.eq.ftz.f32 %p0, %a, 0f00000000; selp.b32 %result, 1, 0, %p0;", "u4", a), [1, 1, 0])


def test_fma_rounds_once():
    # (1 + 2^-12)^2 - 1 = 2^-11 + 2^-24, whose last bit the rounded product has lost.
    a, c = np.array([1 + 2**-12], np.float32), np.array([-1], np.float32)
    assert evaluate("fma.rn.f32 %result, %a, %a, %b;", "f4", a, c) == 2**-11 + 2**-24
    assert evaluate("mul.f32 %f0, %a, %a; add.f32 %result, %f0, %b;", "f4", a, c) == 2**-11
    a, c = np.array([1 + 2**-30], np.float64), np.array([-1], np.float64)
    assert evaluate("fma.rn.f64 %result, %a, %a, %b;", "f8", a, c) == 2**-29 + 2**-60


def test_contraction_is_an_option():
    a, c = np.array([1 + 2**-12], np.float32), np.array([-1], np.float32)
    separate, rounded = "mul.f32 %f0, %a, %a; {}", "mul.rn.f32 %f0, %a, %a; {}"
    once, twice = 2**-11 + 2**-24, 2**-11
    for text, sign in (("add.f32 %result, %f0, %b;", 1), ("add.f32 %result, %b, %f0;", 1)):
        assert evaluate(separate.format(text), "f4", a, c, contract=True) == sign * once
        assert evaluate(separate.format(text), "f4", a, c) == sign * twice
        # .rn forbids it.
        assert evaluate(rounded.format(text), "f4", a, c, contract=True) == sign * twice
    assert evaluate(separate.format("sub.f32 %result, %f0, %b;"), "f4", a, -c, contract=True) == once
    assert evaluate(separate.format("sub.f32 %result, %b, %f0;"), "f4", a, -c, contract=True) == -once
    # The factor has changed since: the product may not be taken in.
    changed = "mul.f32 %f0, %a, %a; mov.f32 %a, 0f00000000; add.f32 %result, %f0, %b;"
    assert evaluate(changed, "f4", a, c, contract=True) == twice


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_arithmetic_of_16_bits(name):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[name]
    patterns_16 = np.unique(np.concatenate([np.arange(0, 1 << 16, 97), [0x7C00, 0xFC00, 0x7F80]])).astype(np.uint16)
    a, b = patterns_16, np.random.default_rng(0).permutation(patterns_16)
    x, y = of_torch(a, dtype), of_torch(b, dtype)
    for instruction, wanted in {"add": x + y, "sub": x - y, "mul": x * y}.items():
        got = of_torch(evaluate(f"{instruction}.{name} %result, %a, %b;", "u2", a, b), dtype)
        same(got.float().numpy(), wanted.float().numpy())
    got = of_torch(evaluate(f"min.{name} %result, %a, %b;", "u2", a, b), dtype)
    same(got.float().numpy(), np.fmin(x.float().numpy(), y.float().numpy()))
    # Two to a register.
    packed = b.astype(np.uint32) << 16 | a
    got = evaluate(f"mul.{name}x2 %result, %a, %a;", "u4", packed)
    same(of_torch((got & 0xFFFF).astype(np.uint16), dtype).float().numpy(), (x * x).float().numpy())
    same(of_torch((got >> 16).astype(np.uint16), dtype).float().numpy(), (y * y).float().numpy())


def test_fma_of_16_bits_rounds_once():
    """A tie is decided by an addend that lies far below double's precision."""

    def fma(a, b, c):
        operands = (patterns(torch.tensor([value], dtype=torch.bfloat16)) for value in (a, b, c))
        return of_torch(evaluate("fma.rn.bf16 %result, %a, %b, %c;", "u2", *operands), torch.bfloat16).item()

    x = 1 + 2.0**-7
    # 1.5 (1 + 2^-7) = 1.5 + 3 * 2^-8 is halfway between 1.5 + 2^-7 and 1.5 + 2^-6, which is even.
    tie, below, above = fma(1.5, x, 0), fma(1.5, x, -(2.0**-80)), fma(1.5, x, 2.0**-80)
    assert (tie, below, above) == (1.5 + 2.0**-6, 1.5 + 2.0**-7, 1.5 + 2.0**-6)
    # 1.5 (1 + 3 * 2^-7) = 1.5 + 9 * 2^-8 is halfway between 1.5 + 4 * 2^-7, even, and 1.5 + 5 * 2^-7.
    x = 1 + 3 * 2.0**-7
    tie, below, above = fma(1.5, x, 0), fma(1.5, x, -(2.0**-80)), fma(1.5, x, 2.0**-80)
    assert (tie, below, above) == (1.5 + 4 * 2.0**-7, 1.5 + 4 * 2.0**-7, 1.5 + 5 * 2.0**-7)


FUNCTIONS = {
    "rcp.rn.f32": lambda x: 1 / x,
    "rcp.approx.f32": lambda x: 1 / x,
    "sqrt.rn.f32": np.sqrt,
    "sqrt.approx.f32": np.sqrt,
    "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x),
    "ex2.approx.f32": np.exp2,
    "lg2.approx.f32": np.log2,
    "sin.approx.f32": np.sin,
    "cos.approx.f32": np.cos,
    "tanh.approx.f32": np.tanh,
    "sqrt.rn.f64": np.sqrt,
    "rcp.rn.f64": lambda x: 1 / x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    dtype = np.float64 if name.endswith("f64") else np.float32
    x = np.concatenate([np.linspace(0.01, 8, 200), np.logspace(-30, 30, 60)]).astype(dtype)
    with np.errstate(over="ignore"):
        wanted = FUNCTIONS[name](x.astype(np.float64))
        if "ex2" in name:
            wanted = np.where(x > 128, INFINITY, wanted)
        same(evaluate(f"{name} %result, %a;", dtype, x), wanted.astype(dtype))


def test_approximations_may_be_off_by_two_units():
    x = np.linspace(0.5, 2, 1000).astype(np.float32)
    for name, units in (("rcp.approx.f32", 2), ("ex2.approx.f32", 2), ("sqrt.approx.f32", 1)):
        exact = FUNCTIONS[name](x.astype(np.float64)).astype(np.float32)
        got = evaluate(f"{name} %result, %a;", "f4", x, inexact_approximations=True)
        off = np.abs(got.view(np.int32) - exact.view(np.int32))
        assert off.max() == units, name
    y = x[::-1].copy()
    off = evaluate("div.full.f32 %result, %a, %b;", "f4", x, y, inexact_approximations=True).view(np.int32)
    assert np.abs(off - (x / y).view(np.int32)).max() == 2
    same(evaluate("sqrt.rn.f32 %result, %a;", "f4", x, inexact_approximations=True), np.sqrt(x))


def test_doubles_are_approximated_by_their_upper_half():
    x = np.array([1 / 3, 1234.5, 2.0**-40])
    for name, function in (("rcp.approx.ftz.f64", lambda v: 1 / v), ("rsqrt.approx.f64", lambda v: 1 / np.sqrt(v))):
        got = evaluate(f"{name} %result, %a;", "f8", x)
        assert (np.abs(got / function(x) - 1) < 2.0**-18).all()
        assert (got.view(np.uint64) & 0xFFFFFFFF == 0).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_comparisons(bits):
    dtype = f"f{bits // 8}"
    a, b = pairs(dtype, [0.0, -0.0, 1.0, -2.0, INFINITY, NAN])
    unordered = np.isnan(a) | np.isnan(b)
    with np.errstate(invalid="ignore"):
        ordered = {"eq": a == b, "ne": (a != b) & ~unordered, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    cases = {**ordered, **{f"{name}u": value | unordered for name, value in ordered.items()}}
    cases.update(num=~unordered, nan=unordered)
    for name, wanted in cases.items():
        body = f"setp.{name}.f{bits} %p0, %a, %b; selp.b32 %result, 1, 0, %p0;"
        assert (evaluate(body, "u4", a, b) == wanted).all(), name


def test_signs():
    x = np.array([1.5, -2.0, 0.0, -0.0, INFINITY], np.float32)
    same(evaluate("neg.f32 %result, %a;", "f4", x), -x)
    same(evaluate("abs.f32 %result, %a;", "f4", x), np.abs(x))
    same(evaluate("copysign.f32 %result, %a, %b;", "f4", x, x[::-1].copy()), np.copysign(x[::-1], x))
    same(evaluate("neg.f64 %result, %a;", "f8", x.astype(np.float64)), -x)
    halves = x.astype(np.float16)
    same(evaluate("neg.f16 %result, %a;", "f2", halves), -halves)
    same(evaluate("abs.f16 %result, %a;", "f2", halves), np.abs(halves))
