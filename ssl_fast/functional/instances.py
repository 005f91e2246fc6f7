"""Instance discrimination against a memory bank of all images (Wu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.loss_parts import nce_of
from ..formulas.rows import finite_rows, unit_rows
from ..formulas.scalars import in_range
from ..formulas.sums import total
from ..memory.bank import MemoryBank
from ..operators import calls
from ..operators.codes import IDS_DIFFER
from ..operators.sampled import sampled_similarity
from . import _statistics
from ._dispatch import as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Loss


def instance_discrimination(
    features: Tensor,
    index: Tensor,
    bank: Tensor | MemoryBank,
    temperature: float | Tensor = 0.07,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Non-parametric softmax over all n images (Wu et al. 2018, eq. 2), in full: no sampling.

    loss_i = logsumexp_j(u_i . bank_j / temperature) - u_i . bank_index(i) / temperature.

    features: (N, D). index: (N,) integers, the images' rows in the bank, from 0 to n - 1.
    bank: (n, D) or a `MemoryBank`, whose rows are taken as they are and get no gradient. Update it after the
        backward pass, which reads it.
    """
    rows = checked_rows(features, index, bank)
    temperature = checks.temperature(temperature, features.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    index = index.long()
    if runs_reference("similarity_lse", features):
        return reference.instance_discrimination(features, index, rows, temperature, reduction, return_stats)
    (features,) = as_computed(features)
    # index_select refuses negative places, which indexing would count from the end.
    positive = calls.pair_similarity(features, rows.index_select(0, index), True, False)
    places = torch.arange(rows.shape[0], device=index.device)
    lse, _, ranks = calls.similarity_lse(
        features, rows, IDS_DIFFER, temperature, (index, places), (True, False),
        positive=positive if return_stats else None,
    )  # fmt: skip
    loss = calls.positive_loss(lse, positive, temperature, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, positive, temperature, "none")
        sums = unit_rows(features).sum(0), finite_rows(rows).sum(0)
        excluded, pairs = total(positive.double()), features.shape[0] * (rows.shape[0] - 1)
    return loss, _statistics.statistics(loss_rows, ranks, total(positive) / positive.numel(), sums, excluded, pairs)


def instance_nce(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Tensor | MemoryBank,
    normalizer: float | Tensor,
    temperature: float | Tensor = 0.07,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Noise-contrastive estimation of `instance_discrimination` (Wu et al. 2018, eq. 4 to 8), as in the original.

    With P(j) = exp(u_i . bank_j / temperature) / normalizer and h = P / (P + m / n):
    loss_i = -log h(index_i) - sum_j log(1 - h(noise_ij)).

    noise: (N, m) integers, the sampled images of each row. normalizer: the estimate of the softmax's sum (Z, about
        n times the mean exponential), a number or a 0-D tensor. The others: as for `instance_discrimination`.
    Gathered rows are never all there at a time. In plain PyTorch on every backend: work is N m, not N n.
    """
    rows = checked_rows(features, index, bank)
    checks.dense("noise", noise)
    if noise.dim() != 2 or noise.shape[1] < 1:
        raise ValueError(f"noise: expected shape ({features.shape[0]}, samples), got {tuple(noise.shape)}")
    checks.ids("noise", noise, (features.shape[0], noise.shape[1]), "features", features)
    checks.places("noise", noise, rows.shape[0])
    checks.scalar("normalizer", normalizer, features.device)
    temperature = checks.temperature(temperature, features.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    index, noise = index.long(), noise.long()
    if runs_reference("similarity_lse", features):
        return reference.instance_nce(
            features, index, noise, rows, normalizer, temperature, reduction, return_stats
        )  # fmt: skip
    candidates = torch.cat([index[:, None], noise], 1)
    similarities = sampled_similarity(unit_rows(features), rows, candidates)
    return nce_of(similarities, rows.shape[0], normalizer, in_range(temperature), reduction, return_stats)


def checked_rows(features: Tensor, index: Tensor, bank: Tensor | MemoryBank) -> Tensor:
    """The bank's rows."""
    rows = bank.bank if isinstance(bank, MemoryBank) else bank
    checks.embeddings("features", features)
    checks.embeddings("bank", rows)
    if rows.shape[1] != features.shape[1]:
        raise ValueError(f"bank: expected {features.shape[1]} columns as features, got {tuple(rows.shape)}")
    checks.same_device("bank", rows, "features", features)
    checks.ids("index", index, features.shape[:1], "features", features)
    checks.places("index", index, rows.shape[0])
    return rows.detach()
