"""SimCLR (Chen et al. 2020), to be read beside its paper."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional
from ...formulas.statistics import ContrastiveStats
from .method import Method, Result


class SimCLR(Method):
    """SimCLR (Chen et al. 2020, algorithm 1): the other images of the batch are the negatives."""

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """The mean loss of the 2N views, each against all others."""
        z1, z2 = self.in_parts(self.both, *views)
        loss, stats = functional.nt_xent(z1, z2, self.temperature, return_stats=True, group=self.group)
        return Result(loss, ContrastiveStats(*stats), z1.detach())

    def both(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, ...]:
        # Both views in one batch: BatchNorm sees them together, as in the paper's code.
        return self.head(self.encoder(torch.cat([view1, view2]))).chunk(2)
