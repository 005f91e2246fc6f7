"""How numbers are rounded and kept in range: TF32, half types, units of gradients."""

import os

import torch
import triton
import triton.language as tl

from .constants import LEAST_CLAMPED_INVERSE

# Triton's interpreter computes bfloat16 arithmetic wrongly and truncates where devices round to bfloat16. In the
# interpreter products are therefore taken in wider types, and results are rounded by our own arithmetic.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums and losses of inputs of `dtype` are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@triton.jit
def to_tf32(x):
    """Rounds float32 x to the nearest TF32 number, ties away from zero. The result is still float32.

    Tensor cores ignore the low 13 bits of a float32 operand. Without this rounding every product would be too small
    in magnitude, by 7e-4 on average.
    """
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # Inf and NaN are kept as they are: the addition would carry a NaN whose bits are all ones into -0.
    return tl.where(tl.abs(x) < float("inf"), nearest, x)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x rounded to the nearest number of dtype."""
    if x.dtype == tl.float64 and dtype != tl.float64:
        x = x.to(tl.float32)  # PyTorch rounds a double to float32 first, then to a half type
    if INTERPRETED and dtype == tl.bfloat16 and x.dtype != tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)


@triton.jit
def rounded_gradient(gradient, inverse_norm, dtype: tl.constexpr):
    """Gradients of rows, (rows, columns), in dtype. inverse_norm (rows,): 1 / max(|x|, EPS).

    The gradient of a zero row is dU / EPS, which is finite but larger than float16 can hold: it becomes the largest
    float16 number. The gradient of another row that is too large becomes Inf, which tells a gradient scaler to back
    off.
    """
    if dtype == tl.float16:
        beyond = (tl.abs(gradient) > 65504.0) & (tl.abs(gradient) < float("inf"))
        beyond = beyond & (inverse_norm >= LEAST_CLAMPED_INVERSE)[:, None]
        gradient = tl.where(beyond, tl.where(gradient > 0, 65504.0, -65504.0), gradient)
    return rounded(gradient, dtype)


@triton.jit
def exponent_of(pointer):
    """The binary exponent of the number at the pointer; 0 where the number is 0, NaN, Inf or far out of range."""
    x = tl.load(pointer).to(tl.float64)
    exponent = ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    return tl.where((exponent > -1000) & (exponent < 1000), exponent, 0)


@triton.jit
def power_of_two(exponent):
    """2^exponent in float64."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def gradient_unit(largest):
    """The power of two in which gradients are counted, so that their products with weights stay in range.

    largest: a pointer to the largest magnitude among the gradients, or None for a unit of 1.
    """
    return 1.0 if largest is None else power_of_two(exponent_of(largest))
