"""Instance discrimination: Z. Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ... import functional
from ...formulas.statistics import ContrastiveStats
from ...memory.bank import MemoryBank
from ...parallel.collectives import gather, total_over
from ..recipes import InstanceDiscriminationRecipe
from .method import Group, Method, Result


class InstanceDiscrimination(Method):
    """Instance discrimination (Wu et al. 2018): each image is a class, whose weight vector is its row of a memory bank.

    Args:
        recipe: The numbers of the method.
        channels: Of the views.
        image_size: Side of the views in pixels.
        group: The processes that share each batch; None for one process.
        images: Number of training images, the rows of the bank.

    Attributes:
        bank: The last features of every image.
        normalizer: () float64, the softmax's sum (Z in equation 8) as estimated on the first batch; 0 before.
    """

    normalizer: Tensor

    def __init__(
        self, recipe: InstanceDiscriminationRecipe, channels: int, image_size: int, group: Group = None, images: int = 1
    ):
        super().__init__(recipe, channels, image_size, group)
        self.bank = MemoryBank(images, self.embedding_dim, recipe.bank_momentum, seed=recipe.seed)
        self.noise = recipe.noise
        self.register_buffer("normalizer", torch.zeros((), dtype=torch.float64))
        self.estimated = False  # normalizer lies on the device; asking it in every step would wait for the device

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """Computes the softmax over all images (equation 2), or noise-contrastive estimation of it (equation 7)."""
        (features,) = self.in_parts(self.query, views[0])
        options: dict[str, Any] = {"temperature": self.temperature, "return_stats": True}
        if not self.noise:
            loss, stats = functional.instance_discrimination(features, index, self.bank, **options)
        else:
            noise = torch.randint(len(self.bank.bank), (len(index), self.noise), device=index.device)
            if not self.estimated:
                self.estimated = True
                if not self.normalizer:  # a checkpoint may have set it
                    self.normalizer.copy_(self.estimate(features.detach(), index, noise))
            loss, stats = functional.instance_nce(features, index, noise, self.bank, self.normalizer, **options)
        return Result(loss, ContrastiveStats(*stats), features.detach())

    def estimate(self, features: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """Estimates the softmax's sum (equation 8) as the original does; over several processes, as their mean."""
        estimate = functional.nce_normalizer(features, index, noise, self.bank, self.temperature)
        if self.group is not None:
            estimate = total_over(estimate, self.group) / dist.get_world_size(self.group)
        return estimate

    def after_backward(self, embeddings: Tensor, index: Tensor) -> None:
        """Moves the rows of the batch's images in the bank towards their new features."""
        if self.group is not None:
            embeddings, index = (gather(x, self.group) for x in (embeddings, index))
        self.bank.update_(index, embeddings)
