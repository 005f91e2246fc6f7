"""SimCLR and MoCo v2, to be read beside their papers' pseudo-code.

`loss(view1, view2)` takes two (N, C, S, S) float views of the same images and returns the loss to
run backward and the `ContrastiveStats`. `encoder` is what is kept after training.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from .. import functional
from ..momentum import ema_update_
from ..queue import NegativeQueue
from ..rows import ContrastiveStats, unit_rows
from . import recipes
from .encoders import Encoder, ProjectionHead


class SimCLR(nn.Module):
    """SimCLR (Chen et al. 2020, algorithm 1): the other images of the batch are the negatives."""

    def __init__(self, recipe: recipes.SimCLR, channels: int):
        super().__init__()
        self.temperature = recipe.temperature
        self.encoder = Encoder(channels, recipe.width)
        self.head = ProjectionHead(self.encoder.feature_dim, recipe.projection_dim)

    def loss(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, ContrastiveStats]:
        """The mean loss of the 2N views, each against all others."""
        # Both views in one batch: BatchNorm sees them together, as in the paper's code.
        z1, z2 = self.head(self.encoder(torch.cat([view1, view2]))).chunk(2)
        loss, stats = functional.nt_xent(z1, z2, self.temperature, return_stats=True)
        return loss, ContrastiveStats(*stats)


class MoCo(nn.Module):
    """MoCo v2 (He et al. 2020, algorithm 1, with the MLP head of v2): a queue of past keys is the negatives.

    Without the paper's shuffled BatchNorm, which exchanges keys between devices: this runs on one.
    """

    def __init__(self, recipe: recipes.MoCoV2, channels: int):
        super().__init__()
        self.temperature, self.momentum = recipe.temperature, recipe.momentum
        self.encoder = Encoder(channels, recipe.width)
        self.head = ProjectionHead(self.encoder.feature_dim, recipe.projection_dim)
        self.key_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.key_head = deepcopy(self.head).requires_grad_(False)
        self.queue = NegativeQueue(recipe.queue_size, recipe.projection_dim, seed=recipe.seed)

    def loss(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, ContrastiveStats]:
        """The mean loss of N queries against the queue as it was; moves the key encoder, then enqueues."""
        query = self.head(self.encoder(view1))
        with torch.no_grad():
            # The key encoder's BatchNorm statistics are its own.
            ema_update_(self.key_encoder, self.encoder, self.momentum, buffers="keep")
            ema_update_(self.key_head, self.head, self.momentum, buffers="keep")
            key = unit_rows(self.key_head(self.key_encoder(view2)))
        loss, stats = functional.info_nce(query, key, self.queue, self.temperature, return_stats=True)
        self.queue.enqueue_(key)
        return loss, stats


METHODS: dict[str, type[nn.Module]] = {"simclr": SimCLR, "moco-v2": MoCo}
