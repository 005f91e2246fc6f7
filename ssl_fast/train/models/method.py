"""The five methods, each a class to be read beside its paper.

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

from .. import functional
from ..formulas.rows import unit_rows
from ..formulas.statistics import ContrastiveStats
from ..memory.bank import MemoryBank
from ..memory.momentum import cosine_momentum, ema_update_
from ..memory.queue import NegativeQueue
from ..parallel.collectives import gather, total_over
from ..parallel.shuffle import shuffle, unshuffle
from . import recipes
from .batch_norm import in_groups, unmoved_statistics
from .encoders import create, initialize_as_moco_v3, mlp

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


class WithKeyEncoder(Method):
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


class MoCo(WithKeyEncoder):
    """MoCo v1 and v2 (He et al. 2020, algorithm 1): a queue of past keys is the negatives."""

    def __init__(self, recipe: recipes.MoCoV1, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        self.make_key_encoder()
        self.momentum = recipe.momentum
        dtype = getattr(torch, recipe.queue_dtype)
        self.queue = NegativeQueue(recipe.queue_size, self.embedding_dim, dtype, seed=recipe.seed)

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """The mean loss of N queries against the queue as it was; moves the key encoder, then enqueues."""
        (query,) = self.in_parts(self.query, views[0])
        with torch.no_grad():
            self.move_key_encoder()
            key = unit_rows(self.shuffled_key(views[1]))
        loss, stats = functional.info_nce(query, key, self.queue, self.temperature, return_stats=True)
        self.queue.enqueue_(key, group=self.group)
        return Result(loss, ContrastiveStats(*stats), query.detach())

    def shuffled_key(self, images: Tensor) -> Tensor:
        """Keys whose batch norm saw other images than their queries' (section 3.3): else it tells which is which."""
        if self.group is not None:
            images, order = shuffle(images, self.group)
            return unshuffle(self.in_parts(self.key, images)[0], order, self.group)
        if self.bn_groups == 1:
            return self.in_parts(self.key, images)[0]
        order = torch.randperm(len(images), device=images.device)
        return self.in_parts(self.key, images[order])[0][order.argsort()]


class MoCoV3(WithKeyEncoder):
    """MoCo v3 (Chen et al. 2021, algorithm 1): both views against the batch's keys, a predictor, no queue."""

    def __init__(self, recipe: recipes.MoCoV3, channels: int, image_size: int, group: Group = None):
        super().__init__(recipe, channels, image_size, group)
        initialize_as_moco_v3(self.encoder, recipe.freeze_patch_projection)
        self.make_key_encoder()
        dim = self.embedding_dim
        predictor = mlp(dim, recipe.predictor_width, dim, recipe.predictor_layers, recipe.predictor_batch_norm)
        self.predictor = in_groups(predictor, recipe.bn_groups)
        self.first_momentum = recipe.momentum
        # A tensor: a CUDA graph reads it anew at each replay.
        self.register_buffer("momentum", torch.tensor(recipe.momentum, dtype=torch.float64), persistent=False)

    def start_step(self, step: int, steps: int) -> None:
        super().start_step(step, steps)
        self.momentum.fill_(cosine_momentum(step, steps, self.first_momentum))  # type: ignore[union-attr]

    def loss(self, views: list[Tensor], index: Tensor) -> Result:
        """2 temperature (contrast of view 1 with the keys of view 2, and the other way round)."""
        (query1,), (query2,) = (self.in_parts(self.predicted, view) for view in views)
        with torch.no_grad():
            self.move_key_encoder()
            (key1,), (key2,) = (self.in_parts(self.key, view) for view in views)
        loss, stats = functional.moco_v3(
            query1, query2, key1, key2, self.temperature, return_stats=True, group=self.group
        )
        return Result(loss, ContrastiveStats(*stats), query1.detach())

    def predicted(self, images: Tensor) -> tuple[Tensor]:
        return (self.predictor(self.head(self.encoder(images))),)


class InstDisc(Method):
    """Instance discrimination (Wu et al. 2018): each image is a class, whose weights are its last features."""

    normalizer: Tensor

    def __init__(self, recipe: recipes.InstDisc, channels: int, image_size: int, group: Group = None, images: int = 1):
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


METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "moco": MoCo, "moco-v3": MoCoV3, "instdisc": InstDisc}


def build(recipe: recipes.Recipe, channels: int, image_size: int, images: int, group: Group = None) -> Method:
    """The recipe's method with fresh weights. images: of the training set."""
    method = METHODS[recipe.method]
    if issubclass(method, InstDisc):
        return method(recipe, channels, image_size, group, images)  # type: ignore[arg-type]
    return method(recipe, channels, image_size, group)
