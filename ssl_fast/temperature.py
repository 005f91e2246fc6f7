"""A temperature that is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import checks


class LearnableTemperature(nn.Module):
    """A temperature that is learnt as CLIP learns it (Radford et al. 2021): exp(-log_scale), for every loss here.

    Parameter `log_scale` (0-D, float32): exclude it from weight decay, and move it to the embeddings' device: left on
    the CPU, its gradient makes each backward pass wait for the GPU.

    Args:
        init: the first temperature.
        max_scale: the largest 1 / temperature; the parameter is clamped to it whenever it is used.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> from ssl_fast import NTXentLoss
        >>> loss = NTXentLoss(temperature=LearnableTemperature(0.07))
        >>> optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    """

    def __init__(self, init: float = 0.07, max_scale: float = 100.0):
        super().__init__()
        checks.number("init", init, 1e-8, 1e8)
        checks.number("max_scale", max_scale, 1e-8, 1e8)
        if 1 / init > max_scale * (1 + 1e-9):
            raise ValueError(f"init: expected at least 1 / max_scale = {1 / max_scale}, got {init}")
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(-math.log(init)))

    def forward(self) -> Tensor:
        """The temperature, 0-D."""
        # The parameter itself is clamped: a clamped copy would pass it no gradient by which to come back.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.max_scale))
        return torch.exp(-self.log_scale)

    def extra_repr(self) -> str:
        return f"max_scale={self.max_scale}"
