"""MoCo v3: X. Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers"."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional
from ...formulas.statistics import ContrastiveStats
from ...memory.momentum import cosine_momentum
from ..recipes import MoCoV3Recipe
from .encoders import initialize_as_moco_v3, mlp
from .grouped_batch_norm import in_groups
from .method import Group, KeyEncoderMethod, Result


class MoCoV3(KeyEncoderMethod):
    """MoCo v3 (Chen et al. 2021, algorithm 1): each view's queries against the other view's keys, without a queue.

    Attributes:
        predictor: (N, D) to (N, D), an MLP behind the head of the queries alone.
    """

    def __init__(self, recipe: MoCoV3Recipe, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        initialize_as_moco_v3(self.encoder, recipe.freeze_patch_projection)
        self.make_key_encoder()
        dim = self.embedding_dim
        predictor = mlp(dim, recipe.predictor_width, dim, recipe.predictor_layers, recipe.predictor_batch_norm)
        self.predictor = in_groups(predictor, recipe.bn_groups)
        self.first_momentum = recipe.momentum
        # momentum is a tensor, since a captured CUDA graph reads tensors anew at each replay, but no Python numbers.
        self.register_buffer("momentum", torch.tensor(recipe.momentum, dtype=torch.float64), persistent=False)

    def start_step(self, step: int, steps: int) -> None:
        super().start_step(step, steps)
        self.momentum.fill_(cosine_momentum(step, steps, self.first_momentum))  # type: ignore[union-attr]

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """Computes 2 temperature [ctr(q1, k2) + ctr(q2, k1)], where ctr is InfoNCE over the keys of the other view."""
        (query1,), (query2,) = (self.in_parts(self.predicted, view) for view in views)
        with torch.no_grad():
            self.move_key_encoder()
            (key1,), (key2,) = (self.in_parts(self.key, view) for view in views)
        loss, stats = functional.moco_v3(
            query1, query2, key1, key2, self.temperature, return_stats=True, group=self.group
        )
        return Result(loss, ContrastiveStats(*stats), query1.detach())

    def predicted(self, images: Tensor) -> tuple[Tensor]:
        """Encodes, projects and predicts images, (N, channels, S, S) to the queries (N, D)."""
        return (self.predictor(self.head(self.encoder(images))),)
