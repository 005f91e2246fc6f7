"""Losses of images and their texts: a and b (N, D), whose row i belongs together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.rows import rows_of
from ..formulas.scalars import in_range, on_device
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import softplus, total
from ..operators import calls
from ..operators.codes import NOT_SELF
from . import _statistics
from ._dispatch import Request, as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss, LossAndStats, Options, Scalar, Temperature, Unpack


@overload
def clip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: Literal[False] = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def clip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: Literal[True], **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def clip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: bool, **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def clip(
    a: Tensor,
    b: Tensor,
    temperature: Any = 0.07,  # a Temperature
    *,
    logit_scale: Scalar | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3), both directions from one pass over the tiles.

    2N losses: logsumexp_k(a_i . b_k / temperature) - a_i . b_i / temperature, then the same with a and b exchanged.

    Args:
        a: (N, D) embeddings of the images.
        b: (N, D) embeddings of their texts.
        temperature: as for `nt_xent`.
        logit_scale: 1 / temperature, in its place: a number or a 0-D tensor, which gets its gradient.
        reduction, normalize, weights, group: as for `nt_xent`.
        return_stats: whether `ContrastiveStats` of both directions are returned too.

    Returns:
        The loss, () or for "none" (2N,), those of a first. With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> images, texts = torch.randn(2, 256, 512)
        >>> loss = functional.clip(images, texts, logit_scale=torch.tensor(14.3, requires_grad=True))
    """
    checks.pair("b", b, "a", a)
    request = Request(a, temperature, reduction, normalize, weights, return_stats, group, logit_scale=logit_scale)
    scale = request.scale
    if runs_reference("similarity_lse", a):
        return request.of_reference(reference.clip, {"a": a, "b": b}, {"logit_scale": scale})
    a, b = as_computed(a, b)
    positive = calls.pair_similarity(a, b, normalize, normalize)  # (N,)
    lse_a, lse_b, above = request.batch.lse_of_both(
        a, b, NOT_SELF, scale, normalize=(normalize, normalize), positive=positive if return_stats else None
    )
    lse = torch.cat([lse_a, lse_b])  # (2N,)
    loss = request.positive_loss(lse, positive)
    if not return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, positive, scale, "none")
    return loss, _pair_statistics(a, b, request, positive, loss_rows, above)


@overload
def siglip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: Literal[False] = ..., bias: Scalar = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def siglip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: Literal[True], bias: Scalar = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def siglip(
    a: Tensor, b: Tensor, temperature: Temperature = ..., *, logit_scale: Scalar | None = ...,
    return_stats: bool, bias: Scalar = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def siglip(
    a: Tensor,
    b: Tensor,
    temperature: Any = 0.1,  # a Temperature
    *,
    logit_scale: Scalar | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    bias: Scalar = -10.0,
) -> Loss:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k softplus(-z_ik (a_i . b_k / temperature + bias)), z_ik = 1 for k = i, else -1.

    Args:
        a: (N, D) embeddings of the images.
        b: (N, D) embeddings of their texts.
        temperature: as for `nt_xent`.
        logit_scale: 1 / temperature, in its place: a number or a 0-D tensor, which gets its gradient.
        reduction, normalize, weights: as for `nt_xent`.
        return_stats: whether `ContrastiveStats` of both directions are returned too.
        group: None or a process group, every rank with as many rows; no `Ring`.
        bias: a number or a 0-D tensor, which gets its gradient.

    Returns:
        The loss, () or for "none" (N,). With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> images, texts = torch.randn(2, 256, 512)
        >>> loss = functional.siglip(images, texts, logit_scale=10.0, bias=-10.0)
    """
    checks.pair("b", b, "a", a)
    checks.scalar("bias", bias, a.device)
    bias = on_device(bias, a.device)
    request = Request(a, temperature, reduction, normalize, weights, return_stats, group, logit_scale=logit_scale)
    scale = request.scale
    request.batch.refuse_ring("siglip")
    # In one process nothing is compared: torch.compile would take the batch size for a constant.
    if not request.batch.alone and len(set(request.batch.counts)) > 1:
        raise ValueError(f"group: expected as many rows on every rank for siglip, got {request.batch.counts}")
    if runs_reference("similarity_softplus", a):
        return request.of_reference(reference.siglip, {"a": a, "b": b}, {"logit_scale": scale, "bias": bias})
    a, b = as_computed(a, b)
    positive = calls.pair_similarity(a, b, normalize, normalize)  # (N,)
    sums, above = request.batch.softplus(a, b, normalize, scale, bias, positive if return_stats else None)
    loss_rows = sums + softplus(-(positive * in_range(scale) + bias))
    loss = request.reduce(loss_rows)
    if not return_stats:
        return loss
    return loss, _pair_statistics(a, b, request, positive, loss_rows.repeat(2), above)


@torch.no_grad()
def _pair_statistics(
    a: Tensor, b: Tensor, request: Request, positive: Tensor, loss_rows: Tensor, above: Tensor
) -> ContrastiveStats:
    """Statistics of both directions of the rank's N pairs; loss_rows and above (2N,)."""
    batch = request.batch
    own = [rows_of(x, request.normalize).double().sum(0) for x in (a, b)]
    # Both directions in one product: <sum of a, sum of all b> + <sum of b, sum of all a>.
    sums = torch.cat(own), torch.cat([batch.sum(own[1]), batch.sum(own[0])])
    pairs = 2 * a.shape[0] * (batch.total - 1)
    positive_mean, excluded = total(positive) / positive.numel(), 2 * total(positive.double())
    return batch.mean_stats(_statistics.statistics(loss_rows, above, positive_mean, sums, excluded, pairs))
