"""A temperature -> the scale s = 1 / temperature in powers of two, and whether the fixed shift may be used.

The temperature is a number, or a tensor on the device. A tensor on the device is read by the kernels and not by the
host, which would have to wait for it.
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
    LEAST_TEMPERATURE,
    LN2,
    LOG2E,
    MOST_TEMPERATURE,
    ONLINE,
)


class Scale(NamedTuple):
    """What every kernel is told of the scale: s log2(e) as a number, or a temperature on the device; the other is None.

    form: of the softmax, FIXED or ONLINE; BY_SCALE where only the device knows the temperature.
    """

    number: float | None
    temperature: Tensor | None  # 0-D
    form: int

    @property
    def arguments(self) -> tuple[float | None, Tensor | None]:
        """The arguments `scale, temperature` of the kernels."""
        return self.number, self.temperature


def scale_of(temperature: float, tensor: Tensor | None, z: Tensor) -> Scale:
    """The scale for embeddings z. tensor (0-D): the temperature where it is learnt; else the number `temperature`.

    The form is that of unit rows: rows that are taken as they are have no fixed shift (similarity_lse.py).
    """
    if tensor is not None and tensor.device == z.device:
        return Scale(None, tensor.detach(), BY_SCALE.value)
    if tensor is not None:
        temperature = tensor.item()  # the tensor is on the CPU, so reading it waits for no device
    if not LEAST_TEMPERATURE.value <= abs(temperature) <= MOST_TEMPERATURE.value:
        temperature = math.nan
    form = FIXED.value if 2 * abs(1 / temperature) <= FIXED_SHIFT_LIMIT.value else ONLINE.value
    if z.dtype == torch.float64:
        # Triton passes a Python number to a kernel as float32, so the number goes in a float64 tensor.
        return Scale(None, torch.full((), temperature, dtype=torch.float64, device=z.device), form)
    return Scale(math.log2(math.e) / temperature, None, form)


@triton.jit
def log2_scale(scale, temperature):
    """s log2(e) in float64, from the number `scale` or the temperature at a pointer; NaN for one out of range."""
    if temperature is None:
        return tl.cast(scale, tl.float64)
    else:
        t = tl.load(temperature).to(tl.float64)
        return tl.where((tl.abs(t) >= LEAST_TEMPERATURE) & (tl.abs(t) <= MOST_TEMPERATURE), LOG2E / t, float("nan"))


@triton.jit
def allows_fixed_shift(log2_scale):
    """Whether |s| can be the shift of all rows. `scale_of` decides alike where the host knows the temperature."""
    return tl.abs(log2_scale) * (2 * LN2) <= FIXED_SHIFT_LIMIT


@triton.jit
def log2_bias(bias):
    """The bias at a pointer, times log2(e); NaN where it is Inf, since the loss would be a finite sum of zeros."""
    x = tl.load(bias).to(tl.float64) * LOG2E
    return tl.where(tl.abs(x) < float("inf"), x, float("nan"))
