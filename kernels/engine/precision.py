"""How numbers are rounded and kept in range: TF32, half types, the interpreter's bfloat16, units of gradients."""

import os

import torch
import triton
import triton.language as tl

from .constants import LEAST_CLAMPED

# The interpreter computes bfloat16 arithmetic wrongly and rounds to it by cutting off: there, products
# are taken in float32 and results are rounded by hand.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and losses are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@triton.jit
def to_tf32(x):
    """float32 x rounded to the nearest TF32 number, ties away from zero; still float32.

    Tensor cores ignore the low 13 bits of a float32 operand. Without this rounding every product would be too small
    in magnitude, by 7e-4 on average.
    """
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # Inf stays Inf, and the addition would carry a NaN whose bits are all ones into -0.
    return tl.where(tl.abs(x) < float("inf"), nearest, x)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in dtype, to the nearest."""
    if x.dtype == tl.float64 and dtype != tl.float64:
        x = x.to(tl.float32)  # as PyTorch rounds a double to a half type
    if INTERPRETED and dtype == tl.bfloat16 and x.dtype != tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)


@triton.jit
def narrowed(gradient, inverse_norm, dtype: tl.constexpr):
    """Gradients of rows (rows, columns) in dtype. inverse_norm (rows): 1 / max(|x|, EPS).

    dU / EPS, the gradient of a zero row, is beyond float16 and saturates where it is finite. Of other rows, Inf tells
    a gradient scaler to back off.
    """
    if dtype == tl.float16:
        beyond = (tl.abs(gradient) > 65504.0) & (tl.abs(gradient) < float("inf"))
        beyond = beyond & (inverse_norm >= LEAST_CLAMPED)[:, None]
        gradient = tl.where(beyond, tl.where(gradient > 0, 65504.0, -65504.0), gradient)
    return rounded(gradient, dtype)


@triton.jit
def exponent_of(largest):
    x = tl.load(largest).to(tl.float64)
    exponent = ((x.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1023
    return tl.where((exponent > -1000) & (exponent < 1000), exponent, 0)


@triton.jit
def power_of_two(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def gradient_unit(largest):
    """A power of two near the largest gradient; 1 where that is 0, NaN or Inf."""
    return 1.0 if largest is None else power_of_two(exponent_of(largest))
