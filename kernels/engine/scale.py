"""What a temperature is to the kernels: a number, or a place on the device that is not read here."""

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
    """The arguments `scale, temperature` of every kernel: s log2(e), or a pointer to the temperature and None."""

    number: float | None
    temperature: Tensor | None
    form: int  # of the softmax: FIXED, ONLINE, or BY_SCALE where only the device knows

    @property
    def arguments(self) -> tuple[float | None, Tensor | None]:
        return self.number, self.temperature


def scale_of(temperature: float, tensor: Tensor | None, z: Tensor) -> Scale:
    """The scale of embeddings z. temperature: used where there is no 0-D tensor."""
    if tensor is not None and tensor.device == z.device:
        return Scale(None, tensor.detach(), BY_SCALE.value)
    if tensor is not None:
        temperature = tensor.item()  # on the CPU, the embeddings elsewhere: nothing to wait for
    if not LEAST_TEMPERATURE.value <= abs(temperature) <= MOST_TEMPERATURE.value:
        temperature = math.nan
    # exp(-2 |s|) must stay a normal number for the sums to take one fixed shift.
    form = FIXED.value if 2 * abs(1 / temperature) <= FIXED_SHIFT_LIMIT.value else ONLINE.value
    if z.dtype == torch.float64:
        # A number would reach the kernel in float32.
        return Scale(None, torch.full((), temperature, dtype=torch.float64, device=z.device), form)
    return Scale(math.log2(math.e) / temperature, None, form)


@triton.jit
def log2_scale(scale, temperature):
    """s log2(e) in float64: `scale`, or by a pointer to the temperature, NaN where its value is refused."""
    if temperature is None:
        return tl.cast(scale, tl.float64)
    else:
        t = tl.load(temperature).to(tl.float64)
        return tl.where((tl.abs(t) >= LEAST_TEMPERATURE) & (tl.abs(t) <= MOST_TEMPERATURE), LOG2E / t, float("nan"))


@triton.jit
def has_fixed_shift(log2_scale):
    """Whether exp(-2 |s|) is a normal number, so that |s| can be every row's shift."""
    return tl.abs(log2_scale) * (2 * LN2) <= FIXED_SHIFT_LIMIT


@triton.jit
def log2_bias(bias):
    """The bias in powers of two, NaN where it is Inf: a sum of zeros would be a finite loss."""
    x = tl.load(bias).to(tl.float64) * LOG2E
    return tl.where(tl.abs(x) < float("inf"), x, float("nan"))
