"""Batches that are spread over processes: gathers with exact gradients, and what losses need of them.

The contract of `group=`: with W ranks and N rows in all, each rank's loss is W / N times the sum over its own rows,
each against the rows of all ranks; with as many rows on every rank that is the mean of its own. Gradients reach the
embeddings of the other ranks, so after DistributedDataParallel's mean the parameters' gradient is that of the
global batch in one process, to rounding. "sum" and "none" are over or of the rank's own rows, unscaled.

All ranks must call alike, in the same order; a rank that drops out ends the others with the process group's error, at
the latest after the timeout given to `init_process_group`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import rows, similarity
from .rows import ContrastiveStats

if TYPE_CHECKING:
    from .annotations import Group, Ids, Loss, Scalar


class Ring:
    """A group whose ranks pass their rows round instead of gathering them: `loss(..., group=Ring(group))`.

    A rank holds its own rows and one other rank's at a time, forward and backward, and computes while the next
    arrive: for batches whose gathered embeddings are too many. Same numbers as with the group itself.
    group: a process group; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group


def all_processes() -> dist.ProcessGroup | None:
    """The default group; None where this process is alone."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def check_group(group: object) -> None:
    if torch.compiler.is_compiling():  # it is no ProcessGroup there
        return
    if not isinstance(group, (dist.ProcessGroup, Ring)):
        raise TypeError(f"group: expected a ProcessGroup, a Ring or None, got {type(group).__name__}")
    if not dist.is_initialized():
        raise ValueError("group: expected torch.distributed to be initialized")


class _Gather(torch.autograd.Function):
    """(world, n, ...) of every rank's x (n, ...); the gradient is summed over the ranks, in float32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.dtype = group, x.dtype
        return _all_gather(x, group).view(-1, *x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Of half types the sum is rounded once.
        wide = torch.promote_types(gradient.dtype, torch.float32)
        flat = gradient.to(wide).flatten(0, 1).contiguous()
        own = flat.new_empty(gradient.shape[1:])
        _collective("reduce_scatter_single", "reduce_scatter_tensor")(own, flat, group=ctx.group)
        return own.to(ctx.dtype), None


def _collective(name: str, before: str) -> Callable[..., Any]:
    """By its name since torch 2.14, which warns of the one before; torch.compile knows only that one."""
    new = None if torch.compiler.is_compiling() else getattr(dist, name, None)
    return new or getattr(dist, before)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
    _collective("all_gather_single", "all_gather_into_tensor")(gathered, x.contiguous(), group=group)
    return gathered


def counts_of(count: int, group: dist.ProcessGroup, device: torch.device) -> list[int]:
    """How many rows each rank has.

    Inside torch.compile and in a CUDA-graph capture nothing can be read: there all must have the same number.
    """
    world = dist.get_world_size(group)
    if torch.compiler.is_compiling() or _is_capturing(device):
        return [count] * world
    return _all_gather(torch.full((1,), count, device=device), group).tolist()


def _is_capturing(device: torch.device) -> bool:
    """Whether the device's current stream is captured in a CUDA graph; the current device may be another."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def gather(x: Tensor, group: dist.ProcessGroup, counts: list[int] | None = None) -> Tensor:
    """The rows of all ranks, in the order of the ranks: (sum of n, ...) of x (n, ...) on each.

    n may differ, the other sizes and the dtype may not. Differentiable: each rank gets the sum of all ranks'
    gradients of its rows. counts: n of each rank, where it is known already.
    """
    counts = counts_of(x.shape[0], group, x.device) if counts is None else counts
    most = max(counts)
    padded = x if x.shape[0] == most else torch.cat([x, x.new_zeros(most - x.shape[0], *x.shape[1:])])
    gathered = _Gather.apply(padded, group)
    if min(counts) == most:
        return gathered.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def total_over(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of x over the ranks, without gradient."""
    out = x.detach().clone()
    dist.all_reduce(out, group=group)
    return out


@torch.no_grad()
def shuffle(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Shuffled batch normalisation (MoCo, He et al. 2020, section 3.3): the ranks exchange their images at random.

    x (n, ...): the rank's images. Returns (n others', of all ranks' images, the permutation for `unshuffle`). The
    permutation is drawn on rank 0 from torch's global generator of the device.
    """
    counts = counts_of(x.shape[0], group, x.device)
    order = torch.randperm(sum(counts), device=x.device)
    dist.broadcast(order, dist.get_global_rank(group, 0), group)
    return gather(x, group, counts)[_own_part(order, counts, group)], order


@torch.no_grad()
def unshuffle(y: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rank's own rows of what the ranks computed of their shuffled images, in the order before `shuffle`."""
    counts = counts_of(len(y), group, y.device)
    return gather(y, group, counts)[_own_part(order.argsort(), counts, group)]


def _own_part(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    return x.split(counts)[dist.get_rank(group)]


class Batch:
    """The rows that a loss's anchors meet: here those of one process. Tensors hold `each` rows for each of `count`."""

    def __init__(self, count: int):
        self.count = self.total = count
        self.first = 0  # the number of this rank's first row among all

    def images(self, device: torch.device) -> Tensor:
        """A number for each of the rank's rows (count,) that no other row of any rank has."""
        return torch.arange(self.first, self.first + self.count, device=device)

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows, the rank's own first: k = i is a row and its own partner."""
        return x

    def lse(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        temperature: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(lse, ranks) of `similarity.similarity_lse` of the rank's a against all ranks' b; ids: of its own rows."""
        others: Tensor | None = b
        if b is a:  # rows with each other take half the products
            others, ids = None, (ids[0], None)
        lse, _, ranks = similarity.similarity_lse(a, others, mask, temperature, ids, normalize, positive=positive)
        return lse, ranks

    def softplus(
        self, a: Tensor, b: Tensor, normalize: bool, temperature: Scalar, bias: Scalar, positive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(sums, ranks) of `similarity.similarity_softplus` of the rank's a against all ranks' b."""
        return similarity.similarity_softplus(a, b, normalize, temperature, bias, positive)

    def positive_loss(
        self, lse: Tensor, positive: Tensor, temperature: Scalar, reduction: str, **options: Any
    ) -> Tensor:
        """`similarity.positive_loss` of the rank's rows."""
        return similarity.positive_loss(lse, positive, temperature, reduction, **options)

    def sum(self, x: Tensor) -> Tensor:
        """Over the ranks, without gradient."""
        return x

    def reduce(self, loss_rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
        """As `rows.reduce`. counted: which rows the mean counts; the others are 0."""
        if reduction != "mean" or counted is None:
            return rows.reduce(loss_rows, reduction)
        return rows.total(loss_rows) / counted.sum().clamp_min(1)

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        """Over the ranks. pairs (2,): positive and negative pairs of the rank, where they are not as its rows."""
        return stats


class Across(Batch):
    """The rows of all ranks of a process group, gathered."""

    def __init__(self, x: Tensor, group: dist.ProcessGroup):
        self.group, self.world = group, dist.get_world_size(group)
        self.counts = counts_of(x.shape[0], group, x.device)
        self.rank = dist.get_rank(group)
        self.count, self.total = x.shape[0], sum(self.counts)
        self.first = sum(self.counts[: self.rank])

    def gather(self, x: Tensor) -> Tensor:
        return torch.roll(self.in_order(x), -self.first * self._each(x), 0)

    def in_order(self, x: Tensor) -> Tensor:
        """All ranks' rows in the order of the ranks."""
        each = self._each(x)
        return gather(x, self.group, [count * each for count in self.counts])

    def _each(self, x: Tensor) -> int:
        return x.shape[0] // self.count

    def lse(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        temperature: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        ids = (ids[0], None if ids[1] is None else self.gather(ids[1]))
        return super().lse(a, self.gather(b), mask, temperature, ids, normalize, positive)

    def softplus(
        self,
        a: Tensor,
        b: Tensor,
        normalize: bool,
        temperature: Scalar,
        bias: Scalar,
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        sums, ranks = super().softplus(a, b, normalize, temperature, bias)
        for other in self.gather(b).split(self.count)[1:]:
            # The operator leaves out k = i, which here is a pair like any other.
            pairs = similarity.pair_similarity(a, other, normalize, normalize) / temperature + bias
            sums = sums + super().softplus(a, other, normalize, temperature, bias)[0] + rows.softplus(pairs)
        if positive is not None:
            options: dict[str, Any] = {"normalize": (normalize, normalize), "positive": positive}
            with torch.no_grad():
                both = (self.lse(*x, similarity.NOT_SELF, temperature, **options) for x in ((a, b), (b, a)))
                ranks = torch.cat([of_side for _, of_side in both])
        return sums, ranks

    def positive_loss(
        self, lse: Tensor, positive: Tensor, temperature: Scalar, reduction: str, **options: Any
    ) -> Tensor:
        return self.reduce(similarity.positive_loss(lse, positive, temperature, "none", **options), reduction)

    def sum(self, x: Tensor) -> Tensor:
        return total_over(x, self.group)

    def reduce(self, loss_rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
        if reduction != "mean":
            return rows.reduce(loss_rows, reduction)
        each = self._each(loss_rows)
        number = self.total * each if counted is None else self.sum(counted.sum()).clamp_min(1)
        return rows.total(loss_rows) * self.world / number

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        values = torch.stack(stats).double()
        weights = torch.full_like(values, self.count)
        if pairs is not None:
            weights[2:] = pairs
        # A rank without any such pair has a mean of NaN, and no part in theirs.
        sums = self.sum(torch.stack([torch.where(weights > 0, values * weights, 0), weights]))
        return ContrastiveStats(*(sums[0] / sums[1]).to(stats[0].dtype))

    def of_reference(
        self,
        function: Callable[..., Any],
        tensors: dict[str, Tensor],
        options: dict[str, Any],
        reduction: str,
        return_stats: bool,
        counted: Tensor | None = None,
        image_first: bool = False,
    ) -> Loss:
        """A loss's formula over the global batch, of which the rank takes its own rows.

        tensors: the arguments that are spread over the ranks; options: the others. Where an image has several losses,
        they are a batch apart, or with image_first beside each other.
        """
        everything = {name: self.in_order(x) for name, x in tensors.items()}
        results = function(**everything, **options, reduction="none", return_stats=return_stats)
        loss_rows, stats = results if return_stats else (results, None)
        own = slice(self.first, self.first + self.count)
        own_rows = loss_rows.view(self.total, -1)[own] if image_first else loss_rows.view(-1, self.total)[:, own]
        loss = self.reduce(own_rows.flatten(), reduction, counted)
        return (loss, stats) if return_stats else loss


def batch_of(group: Group, x: Tensor) -> Batch:
    """The batch that x (n, ...), one of a loss's arguments, is this process's part of."""
    if group is None:
        return Batch(x.shape[0])
    check_group(group)
    if isinstance(group, Ring):
        from .ring import Around  # which builds on this module

        return Around(x, group.group or dist.distributed_c10d._get_default_group())
    return Across(x, group)
