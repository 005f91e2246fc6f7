"""solo-learn's losses and momentum updater, as its main branch at 9187ea3 computes them.

    from ssl_fast.compat.solo_learn import simclr_loss_func  # was: from solo.losses.simclr import simclr_loss_func

Its release on the index, 1.0.2, has another `simclr_loss_func(z1, z2, ...)`, which is not this one. Where torch's
default process group is initialised, the losses that gather there gather here. Half inputs give a float32 loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..formulas.sums import reduce
from ..functional import info_nce, supcon
from ..memory.momentum import ema_update_
from ..parallel.collectives import gather
from ..parallel.group import all_processes

PACKAGE = "solo"
DISTRIBUTION = None
VERSIONS = ()
REPLACES = {
    "solo.losses.simclr": ("simclr_loss_func",),
    "solo.losses.mocov2plus": ("mocov2plus_loss_func",),
    "solo.losses.mocov3": ("mocov3_loss_func",),
    "solo.utils.momentum": ("initialize_momentum_params", "MomentumUpdater"),
}


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """SimCLR over any number of views, or supervised: rows with the same index are positives of each other.

    The mean over rows of log Z_i - log sum_p exp(u_i . u_p / temperature), the sum over the row's positives, Z_i over
    all other rows: with more than two views the positives are summed inside the log (Khosla et al. 2020, eq. 3, less
    the log of their number).

    z: (V N, D), all views, normalised here. indexes: (V N,) integers, of the image or its class.
    In a process group against the rows of all ranks, with their gradient. A row without a positive makes the loss
    Inf, as there; its gradient is 0, not NaN. Nothing overflows at low temperatures, unlike there.
    """
    group = all_processes()
    losses = supcon(z, indexes, temperature, form="in", reduction="none", group=group)
    ordered = (indexes if group is None else gather(indexes, group)).sort().values
    up_to, before = (torch.searchsorted(ordered, indexes.contiguous(), right=right) for right in (True, False))
    positives = (up_to - before - 1).to(losses.dtype)
    return reduce(losses - positives.log(), "mean")  # supcon's positives are a mean inside the log


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of queries, their keys and a queue, none of which is normalised here; the mean over queries.

    query, key: (N, D). queue: (D, K), a key a column; a copy in rows is made of it.
    """
    return info_nce(query, key, queue.T, temperature, normalize=False)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """One direction of MoCo v3's loss: in-batch InfoNCE times 2 temperature, the mean over queries.

    query, key: (N, D), normalised here. In a process group against the keys of all ranks, which get no gradient;
    in one process a key that requires a gradient gets it.
    """
    group = all_processes()
    losses = info_nce(query, key if group is None else key.detach(), None, temperature, reduction="none", group=group)
    return reduce(losses, "mean") * (2 * temperature)


@torch.no_grad()
def initialize_momentum_params(online_net: nn.Module, momentum_net: nn.Module) -> None:
    """The momentum network's parameters take the online network's values, and no gradient."""
    for source, target in zip(online_net.parameters(), momentum_net.parameters(), strict=False):
        target.copy_(source)
        target.requires_grad = False


class MomentumUpdater:
    """The momentum (EMA) update of a network's parameters, with a cosine schedule of its coefficient.

    base_tau, final_tau: from 0 to 1, the first not above the second, else AssertionError. cur_tau: the present one.
    The update is in place, where solo-learn gives each parameter new storage. Two networks with other numbers or
    shapes of parameters are a ValueError.
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0):
        if not 0 <= base_tau <= final_tau <= 1:
            raise AssertionError(f"base_tau: expected 0 <= base_tau <= final_tau <= 1, got {base_tau} and {final_tau}")
        self.base_tau = base_tau
        self.cur_tau = base_tau
        self.final_tau = final_tau

    def update(self, online_net: nn.Module, momentum_net: nn.Module) -> None:
        """Parameters only, in their order: t = cur_tau t + (1 - cur_tau) s. Buffers stay as they are."""
        ema_update_(momentum_net.parameters(), online_net.parameters(), self.cur_tau)

    def update_tau(self, cur_step: int, max_steps: int) -> None:
        """From base_tau at step 0 to final_tau at max_steps by half a cosine."""
        self.cur_tau = (
            self.final_tau - (self.final_tau - self.base_tau) * (math.cos(math.pi * cur_step / max_steps) + 1) / 2
        )
