"""Shuffled batch normalisation: the ranks exchange their images at random (MoCo, He et al. 2020, section 3.3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import counts_of, gather, own_part


@torch.no_grad()
def shuffle(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Shuffled batch normalisation (MoCo, He et al. 2020, section 3.3): the ranks exchange their images at random.

    x (n, ...): the rank's images. Returns (n others', of all ranks' images, the permutation for `unshuffle`). The
    permutation is drawn on rank 0 from torch's global generator of the device.
    """
    counts = counts_of(x.shape[0], group, x.device)
    order = torch.randperm(sum(counts), device=x.device)
    dist.broadcast(order, dist.get_global_rank(group, 0), group)
    return gather(x, group, counts)[own_part(order, counts, group)], order


@torch.no_grad()
def unshuffle(y: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rank's own rows of what the ranks computed of their shuffled images, in the order before `shuffle`."""
    counts = counts_of(len(y), group, y.device)
    return gather(y, group, counts)[own_part(order.argsort(), counts, group)]
