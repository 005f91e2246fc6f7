"""Log-sum-exps over the rows of all ranks without gathering them: blocks of rows travel round a ring.

What ring attention does for attention (Liu et al. 2023): each rank computes its rows against the block that it has,
sends the block on and takes the next. In the backward pass the blocks' gradients travel with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..operators import calls
from ..operators.codes import ALL, NOT_SELF
from .gathered import GatheredBatch

if TYPE_CHECKING:
    from ..annotations import Ids, Scalar


def _nothing_to_wait_for() -> None:
    """Waits for a block that was not sent, because it is here already."""


class _Travel:
    """Blocks of all ranks, one after another: this rank's own, then that of the rank before it, and so on."""

    def __init__(self, group: dist.ProcessGroup, counts: list[int]):
        self.group, self.counts = group, counts
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.following = dist.get_global_rank(group, (self.rank + 1) % self.world)
        self.previous = dist.get_global_rank(group, (self.rank - 1) % self.world)

    def count(self, step: int) -> int:
        """Rows of the block that is here in this step."""
        return self.counts[(self.rank - step) % self.world]

    def pass_on(self, block: list[Tensor], step: int, tag: int = 0) -> tuple[Callable[[], None], list[Tensor]]:
        """Starts sending the block of this step and receiving that of the next; gives (wait, the next block).

        The block must stay until waited for. tag: the first of as many as it has tensors.
        """
        if self.world == 1:  # gloo sends nothing to the rank itself
            return _nothing_to_wait_for, block
        arriving = [x.new_empty(self.count(step + 1), *x.shape[1:]) for x in block]
        operations = []
        for k, (x, place) in enumerate(zip(block, arriving, strict=True), start=tag):
            operations.append(dist.P2POp(dist.isend, x, self.following, self.group, k))
            operations.append(dist.P2POp(dist.irecv, place, self.previous, self.group, k))
        requests = dist.batch_isend_irecv(operations)

        def wait() -> None:
            for request in requests:
                request.wait()

        return wait, arriving

    def blocks(self, block: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """(step, block) for each rank's block; the next arrives while one is used."""
        block = [x.contiguous() for x in block]
        for step in range(self.world):
            if step == self.world - 1:
                yield step, block
                return
            wait, following = self.pass_on(block, step)
            yield step, block
            wait()
            block = following


class _RingLse(torch.autograd.Function):
    """The log-sum-exp of rows against all ranks' rows, and how many are above, as `calls.similarity_lse`."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale_tensor: Tensor | None,
        scale: float,
        ids_a: Tensor | None,
        ids_b: Tensor | None,
        mask: int,
        normalize: tuple[bool, bool],
        positive: Tensor | None,
        group: dist.ProcessGroup,
        counts: list[int],
    ) -> Any:
        travel = _Travel(group, counts)
        each, sums, above = [], [], 0
        for step, (rows, *ids) in travel.blocks([b] if ids_b is None else [b, ids_b]):
            # Only in step 0 does a row meet itself: the blocks of other ranks need no such mask.
            block_mask = mask if step == 0 or mask != NOT_SELF else ALL
            part, _, block_above, block_sums = torch.ops.ssl_fast.similarity_lse(
                a, rows, ids_a, ids[0] if ids else None, block_mask, *normalize, False, scale, scale_tensor,
                positive,
            )  # fmt: skip
            each.append(part)
            sums.append(block_sums)
            above = above + block_above
        parts = torch.stack(each)
        lse = parts.logsumexp(0)
        ctx.save_for_backward(a, b, scale_tensor, ids_a, ids_b, parts, lse, *sums)
        ctx.options = scale, mask, normalize, travel
        ctx.mark_non_differentiable(above)
        return lse, above

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        a, b, scale_tensor, ids_a, ids_b, parts, lse, *sums = ctx.saved_tensors
        scale, mask, normalize, travel = ctx.options
        wants_a, wants_b = ctx.needs_input_grad[:2]
        wide = torch.promote_types(b.dtype, torch.float32)
        ds: Any = 0
        da, db = torch.zeros_like(a, dtype=wide), torch.zeros_like(b, dtype=wide)
        arrive: Callable[[], None] = _nothing_to_wait_for
        for step, (rows, *ids) in travel.blocks([b] if ids_b is None else [b, ids_b]):
            # Each block's share of the softmax; where nothing counts there is none.
            share = torch.where(parts[step] > float("-inf"), (parts[step] - lse).exp(), 0) * gradient
            block_mask = mask if step == 0 or mask != NOT_SELF else ALL
            to_a, to_b, to_scale = torch.ops.ssl_fast.similarity_lse_backward(
                share, None, a, rows, ids_a, ids[0] if ids else None, block_mask, *normalize, scale,
                scale_tensor, sums[step], True, wants_b,
            )  # fmt: skip
            da.add_(to_a)
            ds = ds + to_scale
            if wants_b:
                # A block's gradient goes with it, and after the last step home: it arrives during the next products.
                arrive()
                sent = db.add_(to_b)  # stays until it has left
                arrive, (db,) = travel.pass_on([sent], step, tag=2)
            del to_a, to_b  # before the next ones are made
        arrive()
        if scale_tensor is None:
            ds = None
        return da.to(a.dtype) if wants_a else None, db.to(b.dtype) if wants_b else None, ds, *(None,) * 8


class RingBatch(GatheredBatch):
    """The rows of all ranks, passed round: a rank holds its own and one other rank's at a time."""

    def refuse_ring(self, loss: str) -> None:
        raise ValueError(f"group: expected a process group for {loss}, got a Ring")

    def lse(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        scale: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        number, tensor = calls.split(scale)
        counts = [count * self._each(b) for count in self.counts]
        positive = None if positive is None else positive.detach()
        return _RingLse.apply(a, b, tensor, number, *ids, mask, normalize, positive, self.group, counts)
