"""The updates in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.rounding import rounded_at_random
from ..formulas.rows import unit_rows

if TYPE_CHECKING:
    from ..annotations import Scalar


@torch.no_grad()
def ema_update_(target: list[Tensor], source: list[Tensor], momentum: Scalar, seed: Tensor | None = None) -> None:
    """t = momentum * t + (1 - momentum) * s in place, in float32 or wider; integers are copied.

    With momentum 1 (a number or a 0-D tensor) t stays, beside an s of Inf too; outside 0 to 1 it becomes NaN.
    seed (one int64): bfloat16 targets are rounded at random.
    """
    for place, (t, s) in enumerate(zip(target, source, strict=True)):
        update_pair_(t, s, place, momentum, seed)


@torch.no_grad()
def update_pair_(t: Tensor, s: Tensor, place: int, momentum: Scalar, seed: Tensor | None) -> None:
    """`ema_update_` of one pair, at this place in the lists."""
    if not t.is_floating_point():
        t.copy_(s)
        return
    if isinstance(momentum, Tensor):
        m = momentum.double()
    else:
        m = torch.full((), momentum, dtype=torch.float64, device=t.device)
    m = torch.where((m >= 0) & (m <= 1), m, torch.nan)
    wide = torch.promote_types(torch.promote_types(t.dtype, s.dtype), torch.float32)
    kept, added = m.to(wide), (1 - m).to(wide)
    x = torch.where(added == 0, t.to(wide), t.to(wide) * kept + s.to(wide) * added)
    if seed is not None and t.dtype == torch.bfloat16:
        in_memory = t.stride() == s.stride() and torch.ops.aten.is_non_overlapping_and_dense(t)
        x = rounded_at_random(x.float(), seed, place, t.stride() if in_memory else None)
    t.copy_(x)


@torch.no_grad()
def enqueue_(queue: Tensor, queue_ptr: Tensor, keys: Tensor, normalize: bool = False) -> None:
    """Row j of keys goes to row (ptr + j) mod K of queue (MoCo, He et al. 2020, algorithm 1).

    With more keys than rows the last K keys stay, where writing all in turn would leave them.
    normalize: their unit rows.
    """
    if normalize:
        keys = unit_rows(keys)
    size, count = queue.shape[0], keys.shape[0]
    first = max(count - size, 0)
    places = (queue_ptr + torch.arange(first, count, device=queue.device)) % size
    # A copy: the keys may be rows of the queue itself.
    queue.index_copy_(0, places, keys[first:].to(queue.dtype, copy=True))
    queue_ptr.copy_((queue_ptr + count) % size)
