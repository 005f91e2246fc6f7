"""What a temperature is to the kernels: a number, or a place on the device that is not read here."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .tiles import BY_SCALE, FIXED, ONLINE


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
    if not 1e-8 <= abs(temperature) <= 1e8:  # reference.TEMPERATURES
        temperature = math.nan
    # exp(-2 |s|) must stay a normal number for the sums to take one fixed shift.
    form = FIXED.value if 2 * abs(1 / temperature) <= 80 else ONLINE.value
    if z.dtype == torch.float64:
        # A number would reach the kernel in float32.
        return Scale(None, torch.full((), temperature, dtype=torch.float64, device=z.device), form)
    return Scale(math.log2(math.e) / temperature, None, form)
