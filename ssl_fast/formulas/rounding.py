"""Stochastic rounding to bfloat16: what keeps a slow average moving where its steps are below the dtype's.

bfloat16 has 8 significant bits. A step of (1 - momentum) |s - t| below half of the gap between neighbours
is rounded away, each time, and the target stands still; rounded at random it moves by the right amount on average.
csrc/common/average.h is the same arithmetic, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF  # int64 arithmetic modulo 2^32


def _mixed(x: Tensor) -> Tensor:
    """32 bits that look random; every input gives another output."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & _LOW
    x = ((x ^ x >> 15) * 0x846CA68B) & _LOW
    return x ^ x >> 16


def random_bits(seed: Tensor, place: int, shape: torch.Size, strides: tuple[int, ...] | None = None) -> Tensor:
    """32 bits for each element of one tensor of a list; int64. seed: int64, one. place: of the tensor in the list.

    strides: of a dense tensor, whose elements are counted in the order of memory.
    """
    key = _mixed((_mixed((seed & _LOW) + _mixed(seed >> 32 & _LOW) & _LOW) + place) & _LOW)
    element = torch.arange(shape.numel(), device=seed.device)
    element = element.view(shape) if strides is None else element.as_strided(shape, strides)
    return _mixed((element + _mixed((element >> 32) + key & _LOW)) & _LOW)


def rounded_at_random(x: Tensor, seed: Tensor, place: int, strides: tuple[int, ...] | None = None) -> Tensor:
    """x, float32, as one of the two bfloat16 around it, up by the share of the gap that x has passed: its mean is x."""
    bits = (x.view(torch.int32).long() & _LOW) + (random_bits(seed, place, x.shape, strides) >> 16)
    return torch.where(x.isfinite(), (bits & 0xFFFF0000).int().view(torch.float32), x)
