"""Gathers and sums over the ranks of a process group, with exact gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
    """The collective of torch.distributed, by its name since torch 2.14 or by the one before.

    torch 2.14 warns of the name before, but torch.compile knows no other.
    """
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


def own_part(x: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rank's part of x, which holds counts[r] rows of each rank r."""
    return x.split(counts)[dist.get_rank(group)]
