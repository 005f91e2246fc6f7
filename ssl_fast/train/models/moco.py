"""MoCo v1 and v2.

K. He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning". X. Chen et al. 2020, "Improved
Baselines with Momentum Contrastive Learning".

Both are one class: their recipes differ in the head, the temperature, the augmentation and the schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional
from ...formulas.rows import unit_rows
from ...formulas.statistics import ContrastiveStats
from ...memory.queue import NegativeQueue
from ...parallel.shuffle import shuffle, unshuffle
from ..recipes import MoCoV1Recipe
from .method import Group, KeyEncoderMethod, Result


class MoCo(KeyEncoderMethod):
    """MoCo v1 and v2 (He et al. 2020, algorithm 1): the negatives of a query are the past keys in a queue.

    The loss is InfoNCE (equation 1) of each query with the key of the image's other view.

    Attributes:
        queue: The last queue_size keys of all processes.
    """

    def __init__(self, recipe: MoCoV1Recipe, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        self.make_key_encoder()
        self.momentum = recipe.momentum
        dtype = getattr(torch, recipe.queue_dtype)
        self.queue = NegativeQueue(recipe.queue_size, self.embedding_dim, dtype, seed=recipe.seed)

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """Computes InfoNCE of N queries against the queue as it was before this batch, then enqueues the batch's keys.

        The order is that of facebookresearch/moco: queries, momentum update, keys, loss, enqueue.
        """
        (query,) = self.in_parts(self.query, views[0])
        with torch.no_grad():
            self.move_key_encoder()
            key = unit_rows(self.shuffled_key(views[1]))
        loss, stats = functional.info_nce(query, key, self.queue, self.temperature, return_stats=True)
        self.queue.enqueue_(key, group=self.group)
        return Result(loss, ContrastiveStats(*stats), query.detach())

    def shuffled_key(self, images: Tensor) -> Tensor:
        """Computes the keys with the batch in another order than the queries had (section 3.3).

        Batch norm normalises parts of the batch separately, on several devices or by bn_groups. If a key were in the
        same part as its query, their shared statistics would tell the network which key is the positive.
        """
        if self.group is not None:
            images, order = shuffle(images, self.group)
            return unshuffle(self.in_parts(self.key, images)[0], order, self.group)
        if self.bn_groups == 1:
            return self.in_parts(self.key, images)[0]
        order = torch.randperm(len(images), device=images.device)
        return self.in_parts(self.key, images[order])[0][order.argsort()]
