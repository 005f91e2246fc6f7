"""What the methods have in common: encoder, head, micro-batches, and a key encoder that follows the encoder.

A step of the optimiser calls a method in this order:

    method.start_step(step, steps)
    result = method.loss(views, index)            # with accumulation, this and the next two once for each batch
    result.loss.backward()
    method.after_backward(result.embeddings, index)
    optimizer.step()
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
    """What a method's loss returns.

    Attributes:
        loss: () float32, to run backward.
        stats: The statistics of the loss, such as top1, the share of rows whose positive is nearest.
        embeddings: (N, D), the first view's, without gradient, for `after_backward`.
    """

    loss: Tensor
    stats: ContrastiveStats
    embeddings: Tensor


class Method(nn.Module):
    """An encoder and a projection head, and the loss by which they are trained.

    Args:
        recipe: The numbers of the method.
        channels: Of the views.
        image_size: Side of the views in pixels.
        group: The processes that share each batch; None for one process.

    Attributes:
        encoder: (N, channels, S, S) to (N, features). It is what is kept after training.
        head: (N, features) to (N, D), the embeddings that the loss compares.
    """

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
        """Prepares a step of the optimiser, number `step` (from 0) of the run's `steps`."""

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """Computes the loss of a batch.

        Args:
            views: The recipe's views of N images, each (N, channels, S, S) float32.
            index: (N,) int64, the numbers of the images in the training set.
        """
        raise NotImplementedError

    def after_backward(self, embeddings: Tensor, index: Tensor) -> None:
        """Ends a batch after its backward pass; embeddings and index are those of `loss`."""

    def in_parts(self, function: Callable[..., tuple[Tensor, ...]], *images: Tensor) -> tuple[Tensor, ...]:
        """Returns function(*images), computed in micro-batches if the recipe asks for them.

        The activations of a micro-batch are not kept: the backward pass computes them again (GradCache, Gao et al.
        2021). The loss still sees the embeddings of the whole batch, so its gradient is that of the whole batch.

        Args:
            function: Takes batches of images and returns embeddings of the same number of rows.
            images: Each (N, channels, S, S).
        """
        if not 0 < self.micro_batch < len(images[0]):
            return function(*images)

        def contexts() -> tuple[Any, Any]:
            # The second forward pass must not move the running statistics of batch norm a second time.
            return nullcontext(), unmoved_statistics(self)

        parts = zip(*(x.split(self.micro_batch) for x in images), strict=True)
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts}
        results = [recomputed(function, *part, **options) for part in parts]
        return tuple(torch.cat(column) for column in zip(*results, strict=True))

    def query(self, images: Tensor) -> tuple[Tensor]:
        """Encodes and projects images, (N, channels, S, S) to (N, D); a tuple for `in_parts`."""
        return (self.head(self.encoder(images)),)


class KeyEncoderMethod(Method):
    """A method with a key encoder and a key head, which follow the encoder and the head by a momentum update.

    theta_k <- m theta_k + (1 - m) theta_q (He et al. 2020, equation 2), once a step of the optimiser, with the weights
    theta_q from before that step.

    Attributes:
        key_encoder: A copy of the encoder, without gradient.
        key_head: A copy of the head, without gradient.
        momentum: m, a number or a 0-D tensor.
    """

    momentum: float | Tensor

    def __init__(self, recipe: Any, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        self.moved = False

    def make_key_encoder(self) -> None:
        """Copies encoder and head, after a subclass has initialised them."""
        self.key_encoder = deepcopy(self.encoder).requires_grad_(False)
        self.key_head = deepcopy(self.head).requires_grad_(False)

    def start_step(self, step: int, steps: int) -> None:
        self.moved = False

    def move_key_encoder(self) -> None:
        """Updates the key encoder and the key head, unless this step of the optimiser has done so already."""
        if not self.moved:
            # buffers="keep": the running statistics of batch norm are those of the keys, not an average of the
            # queries'.
            ema_update_(self.key_encoder, self.encoder, self.momentum, buffers="keep")
            ema_update_(self.key_head, self.head, self.momentum, buffers="keep")
            self.moved = True

    def key(self, images: Tensor) -> tuple[Tensor]:
        """Encodes and projects images by the key encoder, (N, channels, S, S) to (N, D); a tuple for `in_parts`."""
        return (self.key_head(self.key_encoder(images)),)
