"""SimCLR: T. Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations"."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional
from ...formulas.statistics import ContrastiveStats
from .method import Method, Result


class SimCLR(Method):
    """SimCLR (Chen et al. 2020, algorithm 1): the negatives of a view are the views of the other images of the batch.

    The loss is NT-Xent (equation 1), the mean over all 2N views.
    """

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """Computes NT-Xent over the 2N views: each has one positive and 2N - 2 negatives."""
        z1, z2 = self.in_parts(self.both, *views)
        loss, stats = functional.nt_xent(z1, z2, self.temperature, return_stats=True, group=self.group)
        return Result(loss, ContrastiveStats(*stats), z1.detach())

    def both(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, ...]:
        """Encodes and projects both views in one batch, since batch norm sees them together in the paper's code."""
        return self.head(self.encoder(torch.cat([view1, view2]))).chunk(2)
