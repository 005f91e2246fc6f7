"""Instance discrimination with a memory bank (Wu et al. 2018), to be read beside its paper."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ... import functional
from ...formulas.rows import unit_rows
from ...formulas.statistics import ContrastiveStats
from ...memory.bank import MemoryBank
from ...parallel.collectives import gather, total_over
from ..recipes import InstanceDiscriminationRecipe
from .method import Group, Method, Result


class InstanceDiscrimination(Method):
    """Instance discrimination (Wu et al. 2018): each image is a class, whose weights are its last features."""

    normalizer: Tensor

    def __init__(
        self, recipe: InstanceDiscriminationRecipe, channels: int, image_size: int, group: Group = None, images: int = 1
    ):
        super().__init__(recipe, channels, image_size, group)
        self.bank = MemoryBank(images, self.embedding_dim, recipe.bank_momentum, seed=recipe.seed)
        self.noise = recipe.noise
        # The softmax's sum, estimated on the first batch and kept, as in the original; 0 before.
        self.register_buffer("normalizer", torch.zeros(()))
        self.estimated = False  # so that no later step waits for the device to tell

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """The full softmax over all images, or noise-contrastive estimation of it."""
        (features,) = self.in_parts(self.query, views[0])
        options: dict[str, Any] = {"temperature": self.temperature, "return_stats": True}
        if not self.noise:
            loss, stats = functional.instance_discrimination(features, index, self.bank, **options)
        else:
            noise = torch.randint(len(self.bank.bank), (len(index), self.noise), device=index.device)
            if not self.estimated:
                self.estimated = True
                if not self.normalizer:  # nor loaded
                    self.normalizer.copy_(self.estimate(features.detach()))
            loss, stats = functional.instance_nce(features, index, noise, self.bank, self.normalizer, **options)
        return Result(loss, ContrastiveStats(*stats), features.detach())

    def estimate(self, features: Tensor) -> Tensor:
        """n times the mean of exp(similarity / temperature) over some rows of the bank (section 3.2)."""
        some = self.bank.bank[torch.randint(len(self.bank.bank), (self.noise,), device=features.device)]
        mean = (unit_rows(features) @ some.to(features.dtype).T / self.temperature).float().exp().mean()
        if self.group is not None:
            mean = total_over(mean, self.group) / dist.get_world_size(self.group)
        return mean * len(self.bank.bank)

    def after_backward(self, embeddings: Tensor, index: Tensor) -> None:
        if self.group is not None:
            embeddings, index = (gather(x, self.group) for x in (embeddings, index))
        self.bank.update_(index, embeddings)
