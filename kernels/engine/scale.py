"""The scale s = 1 / temperature in powers of two, and whether the fixed shift may be used.

The scale is a number, or a tensor on the device. A tensor on the device is read by the kernels and not by the host,
which would have to wait for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .constants import (
    BY_SCALE,
    FIXED,
    FIXED_SHIFT_LIMIT,
    LEAST_SCALE,
    LN2,
    LOG2E,
    MOST_SCALE,
    ONLINE,
)


class Scale(NamedTuple):
    """What every kernel is told of the scale: s log2(e) as a number, or s in a tensor on the device; the other is None.

    form: of the softmax, FIXED or ONLINE; BY_SCALE where only the device knows the scale.
    """

    number: float | None
    tensor: Tensor | None  # 0-D
    form: int

    @property
    def arguments(self) -> tuple[float | None, Tensor | None]:
        """The arguments `scale, scale_tensor` of the kernels."""
        return self.number, self.tensor


def scale_of(number: float, tensor: Tensor | None, z: Tensor) -> Scale:
    """The scale for embeddings z. tensor (0-D): the scale where it is learnt; else it is the number.

    The form is that of unit rows: rows that are taken as they are have no fixed shift (similarity_lse.py).
    """
    if tensor is not None and tensor.device == z.device:
        return Scale(None, tensor.detach(), BY_SCALE.value)
    if tensor is not None:
        number = tensor.item()  # the tensor is on the CPU, so reading it waits for no device
    if not LEAST_SCALE.value <= abs(number) <= MOST_SCALE.value:
        number = math.nan
    form = FIXED.value if 2 * abs(number) <= FIXED_SHIFT_LIMIT.value else ONLINE.value
    if z.dtype == torch.float64:
        # Triton passes a Python number to a kernel as float32, so the number goes in a float64 tensor.
        return Scale(None, torch.full((), number, dtype=torch.float64, device=z.device), form)
    return Scale(number * math.log2(math.e), None, form)


@triton.jit
def log2_scale(scale, scale_tensor):
    """s log2(e) in float64: the number `scale`, or from s at a pointer; NaN for an s out of range."""
    if scale_tensor is None:
        return tl.cast(scale, tl.float64)
    else:
        s = tl.load(scale_tensor).to(tl.float64)
        return tl.where((tl.abs(s) >= LEAST_SCALE) & (tl.abs(s) <= MOST_SCALE), s * LOG2E, float("nan"))


@triton.jit
def allows_fixed_shift(log2_scale):
    """Whether |s| can be the shift of all rows. `scale_of` decides alike where the host knows the scale."""
    return tl.abs(log2_scale) * (2 * LN2) <= FIXED_SHIFT_LIMIT


@triton.jit
def log2_bias(bias):
    """The bias at a pointer, times log2(e); NaN where it is Inf, since the loss would be a finite sum of zeros."""
    x = tl.load(bias).to(tl.float64) * LOG2E
    return tl.where(tl.abs(x) < float("inf"), x, float("nan"))
