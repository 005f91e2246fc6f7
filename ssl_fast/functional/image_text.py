"""Losses of images and their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.rows import finite_rows, unit_rows
from ..formulas.scalars import in_range, on_device
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import softplus, total
from ..operators import calls
from ..operators.codes import NOT_SELF
from ..parallel.batch import batch_of
from ..parallel.gathered import GatheredBatch
from ..parallel.local import LocalBatch
from ..parallel.ring import RingBatch
from . import _statistics
from ._dispatch import as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss


def clip(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3), both directions from one pass over the tiles.

    2N losses: logsumexp_k(a_i . b_k / temperature) - a_i . b_i / temperature, then the same with a and b exchanged.

    a, b: (N, D), images and their texts. temperature: 1 / logit_scale. normalize: False takes the rows as they
        are. Statistics are of both directions.
    """
    checks.pair("b", b, "a", a)
    temperature = checks.temperature(temperature, a.device)
    checks.reduction(reduction)
    checks.flags(normalize=normalize, return_stats=return_stats)
    batch = batch_of(group, a)
    if runs_reference("similarity_lse", a):
        options = {"temperature": temperature, "normalize": normalize}
        if isinstance(batch, GatheredBatch):
            return batch.of_reference(reference.clip, {"a": a, "b": b}, options, reduction, return_stats)
        return reference.clip(a, b, **options, reduction=reduction, return_stats=return_stats)
    a, b = as_computed(a, b)
    positive = calls.pair_similarity(a, b, normalize, normalize)
    counted = positive if return_stats else None
    if isinstance(batch, GatheredBatch):
        (rows, of_rows), (columns, of_columns) = (
            batch.lse(*sides, NOT_SELF, temperature, normalize=(normalize, normalize), positive=counted)
            for sides in ((a, b), (b, a))
        )
        ranks = torch.cat([of_rows, of_columns])
    else:
        rows, columns, ranks = calls.similarity_lse(
            a, b, NOT_SELF, temperature, normalize=(normalize, normalize), columns=True, positive=counted
        )
    lse = torch.cat([rows, columns])
    loss = batch.positive_loss(lse, positive, temperature, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, positive, temperature, "none")
    return loss, _of_pairs(a, b, normalize, positive, loss_rows, ranks, batch)


def siglip(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k softplus(-z_ik (a_i . b_k / temperature + bias)), z_ik = 1 for k = i, else -1.

    a, b: (N, D), images and their texts. bias: a number or a 0-D tensor, which gets its gradient.
    normalize: False takes the rows as they are. The rows' losses: (N,); statistics are of both directions.
    """
    checks.pair("b", b, "a", a)
    temperature = checks.temperature(temperature, a.device)
    checks.scalar("bias", bias, a.device)
    bias = on_device(bias, a.device)
    checks.reduction(reduction)
    checks.flags(normalize=normalize, return_stats=return_stats)
    batch = batch_of(group, a)
    if isinstance(batch, RingBatch):
        raise ValueError("group: expected a process group for siglip, got a Ring")
    if isinstance(batch, GatheredBatch) and len(set(batch.counts)) > 1:
        raise ValueError(f"group: expected as many rows on every rank for siglip, got {batch.counts}")
    if runs_reference("similarity_softplus", a):
        options = {"temperature": temperature, "bias": bias, "normalize": normalize}
        if isinstance(batch, GatheredBatch):
            return batch.of_reference(reference.siglip, {"a": a, "b": b}, options, reduction, return_stats)
        return reference.siglip(a, b, **options, reduction=reduction, return_stats=return_stats)
    a, b = as_computed(a, b)
    positive = calls.pair_similarity(a, b, normalize, normalize)
    counted = positive if return_stats else None
    sums, ranks = batch.softplus(a, b, normalize, temperature, bias, counted)
    loss_rows = sums + softplus(-(positive / in_range(temperature) + bias))
    loss = batch.reduce(loss_rows, reduction)
    return (loss, _of_pairs(a, b, normalize, positive, loss_rows.repeat(2), ranks, batch)) if return_stats else loss


@torch.no_grad()
def _of_pairs(
    a: Tensor, b: Tensor, normalize: bool, positive: Tensor, loss_rows: Tensor, ranks: Tensor, batch: LocalBatch
) -> ContrastiveStats:
    """Statistics of both directions of the rank's N pairs; loss_rows: (2N,)."""
    prepared = unit_rows if normalize else finite_rows
    own = prepared(a).double().sum(0), prepared(b).double().sum(0)
    pairs = 2 * a.shape[0] * (batch.total - 1)
    # Both directions: <a, all b> and <b, all a>, which in one process are the same sum.
    sums = torch.cat(own), torch.cat([batch.sum(own[1]), batch.sum(own[0])])
    positive_mean, excluded = total(positive) / positive.numel(), 2 * total(positive.double())
    return batch.mean_stats(_statistics.statistics(loss_rows, ranks, positive_mean, sums, excluded, pairs))
