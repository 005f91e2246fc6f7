"""What the methods have in common: encoder, head, micro-batches, and a second encoder that follows the first.

`loss(views, index)` takes the (N, C, S, S) float views of N images and their (N,) numbers in the data set.
`encoder` is what is kept after training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ...formulas.statistics import ContrastiveStats
from ...memory.momentum import ema_update_
from .encoders import create, mlp
from .grouped_batch_norm import in_groups, unmoved_statistics

Group = dist.ProcessGroup | None


class Result(NamedTuple):
    """loss: 0-D, to run backward. embeddings: (N, D) of the first view, for `after_backward`."""

    loss: Tensor
    stats: ContrastiveStats
    embeddings: Tensor


class Method(nn.Module):
    """What all have in common. channels, image_size: of the views. group: the processes that share a batch."""

    def __init__(self, recipe: Any, channels: int, image_size: int, group: Group = None):
        super().__init__()
        self.temperature, self.micro_batch, self.bn_groups = recipe.temperature, recipe.micro_batch, recipe.bn_groups
        self.group = group
        encoder, features = create(recipe.encoder, channels, recipe.stem, image_size)
        head = mlp(
            features, recipe.head_width or features, recipe.projection_dim, recipe.head_layers, recipe.head_batch_norm
        )
        self.encoder, self.head = in_groups(encoder, recipe.bn_groups), in_groups(head, recipe.bn_groups)
        self.embedding_dim = recipe.projection_dim if recipe.head_layers else features

    def start_step(self, step: int, steps: int) -> None:
        """Before the first loss of each step of the optimiser, number `step` of `steps`."""

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        raise NotImplementedError

    def after_backward(self, embeddings: Tensor, index: Tensor) -> None:
        """After the backward pass of each loss."""

    def in_parts(self, function: Callable[..., tuple[Tensor, ...]], *images: Tensor) -> tuple[Tensor, ...]:
        """function(*images), in micro-batches: what the backward pass needs of each is computed again when it comes.

        The loss sees all embeddings, so that the gradient is the whole batch's (GradCache, Gao et al. 2021).
        """
        if not 0 < self.micro_batch < len(images[0]):
            return function(*images)

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), unmoved_statistics(self)

        parts = zip(*(x.split(self.micro_batch) for x in images), strict=True)
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts}
        results = [recomputed(function, *part, **options) for part in parts]
        return tuple(torch.cat(column) for column in zip(*results, strict=True))

    def query(self, images: Tensor) -> tuple[Tensor]:
        return (self.head(self.encoder(images)),)


class KeyEncoderMethod(Method):
    """A second encoder and head, `key_*`, that follow the first by a momentum update."""

    momentum: float | Tensor

    def __init__(self, recipe: Any, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        self.moved = False

    def make_key_encoder(self) -> None:
        self.key_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.key_head = deepcopy(self.head).requires_grad_(False)

    def start_step(self, step: int, steps: int) -> None:
        self.moved = False

    def move_key_encoder(self) -> None:
        """Once a step of the optimiser, with the weights from before it."""
        if not self.moved:
            # The key encoder's BatchNorm statistics are its own.
            ema_update_(self.key_encoder, self.encoder, self.momentum, buffers="keep")
            ema_update_(self.key_head, self.head, self.momentum, buffers="keep")
            self.moved = True

    def key(self, images: Tensor) -> tuple[Tensor]:
        return (self.key_head(self.key_encoder(images)),)
