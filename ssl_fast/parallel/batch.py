"""Batches that are spread over processes: gathers with exact gradients, and what losses need of them.

The contract of `group=`: with W ranks and N rows in all, each rank's loss is W / N times the sum over its own rows,
each against the rows of all ranks; with as many rows on every rank that is the mean of its own. Gradients reach the
embeddings of the other ranks, so after DistributedDataParallel's mean the parameters' gradient is that of the
global batch in one process, to rounding. "sum" and "none" are over or of the rank's own rows, unscaled.

All ranks must call alike, in the same order; a rank that drops out ends the others with the process group's error, at
the latest after the timeout given to `init_process_group`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from .gathered import GatheredBatch
from .group import Ring, check_group
from .local import LocalBatch
from .ring import RingBatch

if TYPE_CHECKING:
    from ..annotations import Group


def batch_of(group: Group, x: Tensor) -> LocalBatch:
    """The batch that x (n, ...), one of a loss's arguments, is this process's part of."""
    if group is None:
        return LocalBatch(x.shape[0])
    check_group(group)
    if isinstance(group, Ring):
        return RingBatch(x, group.group or dist.distributed_c10d._get_default_group())
    return GatheredBatch(x, group)
