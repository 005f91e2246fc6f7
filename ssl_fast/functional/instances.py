"""Instance discrimination against a memory bank of all images (Wu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.loss_parts import nce_estimate, noise_contrastive_loss_rows
from ..formulas.rows import rows_of
from ..formulas.scalars import in_range, inverse
from ..formulas.statistics import stats_from
from ..formulas.sums import total
from ..memory.bank import MemoryBank
from ..operators import calls
from ..operators.codes import IDS_DIFFER
from ..operators.sampled import sampled_similarity
from . import _statistics
from ._dispatch import Request, as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Loss, LossAndStats, OptionsOfOneProcess, Scalar, Temperature, Unpack


@overload
def instance_discrimination(
    features: Tensor, index: Tensor, bank: Tensor | MemoryBank, temperature: Temperature = ..., *,
    return_stats: Literal[False] = ..., **o: Unpack[OptionsOfOneProcess],
) -> Tensor: ...  # fmt: skip
@overload
def instance_discrimination(
    features: Tensor, index: Tensor, bank: Tensor | MemoryBank, temperature: Temperature = ..., *,
    return_stats: Literal[True], **o: Unpack[OptionsOfOneProcess],
) -> LossAndStats: ...  # fmt: skip
@overload
def instance_discrimination(
    features: Tensor, index: Tensor, bank: Tensor | MemoryBank, temperature: Temperature = ..., *,
    return_stats: bool, **o: Unpack[OptionsOfOneProcess],
) -> Loss: ...  # fmt: skip
def instance_discrimination(
    features: Tensor,
    index: Tensor,
    bank: Tensor | MemoryBank,
    temperature: Any = 0.07,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """Non-parametric softmax over all n images (Wu et al. 2018, eq. 2), in full: no sampling.

    loss_i = logsumexp_j(u_i . bank_j / temperature) - u_i . bank_index(i) / temperature.

    Args:
        features: (N, D) embeddings.
        index: (N,) integers from 0 to n - 1, the images' rows in the bank.
        bank: (n, D) or a `MemoryBank`, whose rows are taken as they are and get no gradient. Update it after the
            backward pass, which reads it.
        temperature, reduction, weights, return_stats: as for `nt_xent`.
        normalize: whether the features are normalised here.

    Returns:
        The loss, () or for "none" (N,). With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> bank = MemoryBank(size=1000, dim=128)
        >>> loss = functional.instance_discrimination(torch.randn(256, 128), torch.arange(256), bank)
    """
    rows = checked_rows(features, index, bank)
    request = Request(features, temperature, reduction, normalize, weights, return_stats)
    index = index.long()
    if runs_reference("similarity_lse", features):
        tensors = {"features": features, "index": index}
        options = {"bank": rows, "temperature": request.temperature}
        return request.of_reference(reference.instance_discrimination, tensors, options)
    (features,) = as_computed(features)
    # index_select refuses negative places, which indexing would count from the end.
    positive = calls.pair_similarity(features, rows.index_select(0, index), normalize, False)
    places = torch.arange(rows.shape[0], device=index.device)
    lse, above = calls.similarity_lse(
        features, rows, IDS_DIFFER, request.scale, (index, places), (normalize, False),
        positive=positive if return_stats else None,
    )  # fmt: skip
    loss = request.positive_loss(lse, positive)
    if not return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, positive, request.scale, "none")
        sums = rows_of(features, normalize).sum(0), rows_of(rows, False).sum(0)
        excluded, pairs = total(positive.double()), features.shape[0] * (rows.shape[0] - 1)
    return loss, _statistics.statistics(loss_rows, above, total(positive) / positive.numel(), sums, excluded, pairs)


@overload
def instance_nce(
    features: Tensor, index: Tensor, noise: Tensor, bank: Tensor | MemoryBank, normalizer: Scalar,
    temperature: Temperature = ..., *, return_stats: Literal[False] = ..., **o: Unpack[OptionsOfOneProcess],
) -> Tensor: ...  # fmt: skip
@overload
def instance_nce(
    features: Tensor, index: Tensor, noise: Tensor, bank: Tensor | MemoryBank, normalizer: Scalar,
    temperature: Temperature = ..., *, return_stats: Literal[True], **o: Unpack[OptionsOfOneProcess],
) -> LossAndStats: ...  # fmt: skip
@overload
def instance_nce(
    features: Tensor, index: Tensor, noise: Tensor, bank: Tensor | MemoryBank, normalizer: Scalar,
    temperature: Temperature = ..., *, return_stats: bool, **o: Unpack[OptionsOfOneProcess],
) -> Loss: ...  # fmt: skip
def instance_nce(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Tensor | MemoryBank,
    normalizer: Scalar,
    temperature: Any = 0.07,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """Noise-contrastive estimation of `instance_discrimination` (Wu et al. 2018, eq. 4 to 8), as in the original.

    With P(j) = exp(u_i . bank_j / temperature) / normalizer and h = P / (P + m / n):
    loss_i = -log h(index_i) - sum_j log(1 - h(noise_ij)).
    Only some of the sampled rows are gathered at a time. It is computed in plain PyTorch on every backend, as its
    work is N m and not N n.

    Args:
        features: (N, D) embeddings.
        index: (N,) integers from 0 to n - 1, the images' rows in the bank.
        noise: (N, m) integers, the sampled images of each row.
        bank: as for `instance_discrimination`.
        normalizer: the estimate of the softmax's sum (Z, about n times the mean exponential): a number or a 0-D tensor.
            `nce_normalizer` is the original's.
        temperature, reduction, normalize, weights, return_stats: as for `instance_discrimination`.

    Returns:
        The loss, () or for "none" (N,). With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> bank, index = MemoryBank(size=1000, dim=128), torch.arange(256)
        >>> features, noise = torch.randn(256, 128), torch.randint(1000, (256, 64))
        >>> normalizer = functional.nce_normalizer(features, index, noise, bank, temperature=0.07)
        >>> loss = functional.instance_nce(features, index, noise, bank, normalizer, temperature=0.07)
    """
    rows, candidates = _candidates(features, index, noise, bank)
    checks.scalar("normalizer", normalizer, features.device)
    request = Request(features, temperature, reduction, normalize, weights, return_stats)
    return _instance_nce(features, rows, candidates, normalizer, request, estimates=False)


def instance_nce_estimating(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Tensor | MemoryBank,
    normalizer: Tensor,
    temperature: Any,
    *,
    reduction: str,
    normalize: bool,
    weights: Tensor | None,
    return_stats: bool,
) -> Loss:
    """`instance_nce` whose normalizer, 0-D float64, is first set to this batch's `nce_normalizer`, if it is 0 or NaN.

    As in the original, the estimate is of the similarities that the loss needs: they are computed once.
    """
    rows, candidates = _candidates(features, index, noise, bank)
    request = Request(features, temperature, reduction, normalize, weights, return_stats)
    return _instance_nce(features, rows, candidates, normalizer, request, estimates=True)


def _instance_nce(
    features: Tensor, rows: Tensor, candidates: Tensor, normalizer: Any, request: Request, estimates: bool
) -> Loss:
    """The loss of the bank's rows at the candidates' places (N, 1 + m). estimates: whether normalizer may be set."""
    in_reference, scale = runs_reference("similarity_lse", features), in_range(request.scale)
    if estimates or not in_reference:
        similarity = sampled_similarity(rows_of(features, request.normalize), rows, candidates)  # (N, 1 + m)
    if estimates:
        with torch.no_grad():
            estimate = nce_estimate(similarity, rows.shape[0], scale)
            # Where it is set already it stays; the choice is made on the device, which is not waited for.
            normalizer.copy_(torch.where(normalizer > 0, normalizer, estimate))
    if in_reference:
        tensors = {"features": features, "index": candidates[:, 0], "noise": candidates[:, 1:]}
        options = {"bank": rows, "normalizer": normalizer, "temperature": request.temperature}
        return request.of_reference(reference.instance_nce, tensors, options)
    loss_rows = noise_contrastive_loss_rows(similarity, rows.shape[0], normalizer, scale)
    loss = request.reduce(loss_rows)
    if not request.return_stats:
        return loss
    positive, negative = similarity[:, 0], similarity[:, 1:]
    is_negative = torch.ones_like(negative, dtype=torch.bool)
    return loss, stats_from(loss_rows, negative, positive, positive.detach().mean(), is_negative, scale)


@torch.no_grad()
def nce_normalizer(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Tensor | MemoryBank,
    temperature: Any = 0.07,  # a Temperature
    *,
    normalize: bool = True,
) -> Tensor:
    """The original's estimate of the softmax's sum from a first batch: n times the mean exponential (Wu et al. 2018).

    Args:
        features, index, noise, bank, temperature, normalize: as for `instance_nce`.

    Returns:
        0-D float64, kept from 1e-290 to 1e290, where the coldest temperatures would give 0 or Inf.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> bank, noise = MemoryBank(size=1000, dim=128), torch.randint(1000, (256, 64))
        >>> normalizer = functional.nce_normalizer(torch.randn(256, 128), torch.arange(256), noise, bank)
    """
    rows, candidates = _candidates(features, index, noise, bank)
    scale = inverse(checks.temperature(temperature, features.device))
    checks.flags(normalize=normalize)
    similarity = sampled_similarity(rows_of(features, normalize), rows, candidates)  # (N, 1 + m)
    return nce_estimate(similarity, rows.shape[0], in_range(scale))


def _candidates(features: Tensor, index: Tensor, noise: Tensor, bank: Tensor | MemoryBank) -> tuple[Tensor, Tensor]:
    """(the bank's rows, (N, 1 + m) the places of each row's own image and of the sampled ones), checked."""
    rows = checked_rows(features, index, bank)
    checks.dense("noise", noise)
    if noise.dim() != 2 or noise.shape[1] < 1:
        raise ValueError(f"noise: expected shape ({features.shape[0]}, samples), got {tuple(noise.shape)}")
    checks.ids("noise", noise, (features.shape[0], noise.shape[1]), "features", features)
    checks.places("noise", noise, rows.shape[0])
    return rows, torch.cat([index.long()[:, None], noise.long()], 1)


def checked_rows(features: Tensor, index: Tensor, bank: Tensor | MemoryBank) -> Tensor:
    """The bank's rows (n, D), after the checks of all three."""
    rows = bank.bank if isinstance(bank, MemoryBank) else bank
    checks.embeddings("features", features)
    checks.embeddings("bank", rows)
    if rows.shape[1] != features.shape[1]:
        raise ValueError(f"bank: expected {features.shape[1]} columns as features, got {tuple(rows.shape)}")
    checks.same_device("bank", rows, "features", features)
    checks.ids("index", index, features.shape[:1], "features", features)
    checks.places("index", index, rows.shape[0])
    return rows.detach()
