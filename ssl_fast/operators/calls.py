"""Typed calls of the operators, on the CPU and the GPU; csrc/operators/schemas.cpp says what each computes.

The losses call these after their checks, and only where a kernel was chosen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.classes import same_class_similarity
from ..formulas.rows import finite_rows
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import logsumexp, reduce, softplus
from .codes import REDUCTIONS

if TYPE_CHECKING:
    from ..annotations import Ids, Scalar

LN2, LOG2E = math.log(2), math.log2(math.e)


def split(scale: Scalar) -> tuple[float, Tensor | None]:
    """A scale as the operators take it: a number, or a tensor that may want a gradient."""
    return (1.0, scale) if isinstance(scale, Tensor) else (float(scale), None)


def nt_xent(
    z1: Tensor, z2: Tensor, scale: Scalar, reduction: str, return_stats: bool
) -> tuple[Tensor, ContrastiveStats | None]:
    """(the reduced loss of the 2N rows, statistics or None) of the views z1 and z2 (N, D)."""
    loss, stats, _ = torch.ops.ssl_fast.nt_xent(z1, z2, *split(scale), REDUCTIONS.index(reduction), return_stats)
    return loss, ContrastiveStats(*stats.unbind()) if return_stats else None


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    normalize_negatives: bool,
    scale: Scalar,
    reduction: str,
    return_stats: bool,
) -> tuple[Tensor, ContrastiveStats | None]:
    """(the reduced loss of the N queries, statistics or None). negatives: None, (M, D) or (N, M, D)."""
    loss, stats, *_ = torch.ops.ssl_fast.info_nce(
        query, positive, negatives, normalize_negatives, *split(scale), REDUCTIONS.index(reduction), return_stats
    )
    return loss, ContrastiveStats(*stats.unbind()) if return_stats else None


def similarity_lse(
    a: Tensor,
    b: Tensor,
    mask: int,
    scale: Scalar,
    ids: Ids = (None, None),
    normalize: tuple[bool, bool] = (True, True),
    positive: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(lse (N,) float64 of the rows a over the rows b, above (1, N) of `positive`, similarities, or (0, N)).

    b: where it is a itself, half the products are computed, and the ids are one tensor twice.
    """
    others: Tensor | None = b
    if b is a:
        others, ids = None, (ids[0], None)
    lse, _, above, _ = torch.ops.ssl_fast.similarity_lse(
        a, others, *ids, mask, *normalize, False, *split(scale), None if positive is None else positive.detach()
    )
    return lse, above


def similarity_lse_of_both(
    a: Tensor,
    b: Tensor,
    mask: int,
    scale: Scalar,
    ids: Ids = (None, None),
    normalize: tuple[bool, bool] = (True, True),
    positive: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(lse (N,) of the rows a over the rows b, lse (M,) of b over a, above (2, N) or (0, N)), from one pass."""
    lse, column_lse, above, _ = torch.ops.ssl_fast.similarity_lse(
        a, b, *ids, mask, *normalize, True, *split(scale), None if positive is None else positive.detach()
    )
    return lse, column_lse, above


def scores(similarities: Tensor, scale: Scalar) -> Tensor:
    """scale * similarities in float64, as it is subtracted from a log-sum-exp as large as itself.

    The scale is rounded as the kernels round theirs, in powers of two, so that the two parts of a small loss cancel
    exactly.
    """
    if isinstance(scale, Tensor):
        log2_scale = (scale.double() * LOG2E).to(similarities.dtype)
    else:
        log2_scale = torch.full((), scale * LOG2E, dtype=similarities.dtype, device=similarities.device)
    return similarities.double() * (log2_scale.double() * LN2)


def positive_loss(
    lse: Tensor,
    positive: Tensor,
    scale: Scalar,
    reduction: str,
    positive_weights: Tensor | None = None,
    in_denominator: bool = True,
    mean_in_log: bool = False,
) -> Tensor:
    """The reduced losses of rows from their log-sum-exps and their positives' similarities.

    Args:
        lse: (R N,) float64 over the negatives, R rows for each of `positive`, one view below the other.
        positive: (N,) similarities, or (N, P) of several positives: A = log sum_p exp(s p) is then the one positive's
            logit, and the mean over them is of their losses, or with mean_in_log of their exponentials.
        positive_weights: (N,) w, without gradient; None is 1.
        in_denominator: whether the positive is there too, softplus(lse - s w p), or not, lse - s w p.
    """
    if lse.device.type != "cpu":
        return composed_positive_loss(lse, positive, scale, reduction, positive_weights, in_denominator, mean_in_log)
    return torch.ops.ssl_fast.positive_loss(
        lse, positive, positive_weights, in_denominator, mean_in_log, *split(scale), REDUCTIONS.index(reduction)
    )


def composed_positive_loss(
    lse: Tensor,
    positive: Tensor,
    scale: Scalar,
    reduction: str,
    positive_weights: Tensor | None = None,
    in_denominator: bool = True,
    mean_in_log: bool = False,
) -> Tensor:
    """`positive_loss` in plain PyTorch, on any device."""
    logits = scores(positive if positive_weights is None else positive_weights * positive, scale)
    several, views = positive.dim() == 2, lse.shape[0] // positive.shape[0]
    of_all = logsumexp(logits) if several else logits
    # The positive's part last: what it leaves of the loss may be tiny.
    x = lse - of_all.repeat(views)
    rows = softplus(x) if in_denominator else x
    if several:
        rows = rows + (math.log(positive.shape[1]) if mean_in_log else (of_all - logits.mean(1)).repeat(views))
    return reduce(rows.to(positive.dtype), reduction)


def pair_similarity(a: Tensor, b: Tensor, normalize_a: bool = True, normalize_b: bool = True) -> Tensor:
    """<u_i, v_i> (N,) of the rows that belong together, rounded as similarity_lse does."""
    return torch.ops.ssl_fast.pair_similarity(a, b, normalize_a, normalize_b)


def class_similarity(x: Tensor, labels: Tensor, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """For each row of x (N, D) the sum of its similarities with the other rows of its label, and how many they are.

    The operator is of unit rows. With normalize=False PyTorch computes the same from class sums, on any device.
    """
    if normalize:
        return torch.ops.ssl_fast.class_similarity(x, labels)
    return same_class_similarity(finite_rows(x), labels)


def similarity_softplus(
    a: Tensor, b: Tensor, normalize: bool, scale: Scalar, bias: Scalar, positive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(row i's sum over k != i of softplus(s <u_i, v_k> + bias) (N,), above (2, N) of `positive` or (0, N))."""
    if not isinstance(bias, Tensor):
        bias = torch.full((), bias, dtype=torch.float64, device=a.device)
    sums, above, _ = torch.ops.ssl_fast.similarity_softplus(
        a, b, normalize, *split(scale), bias, None if positive is None else positive.detach()
    )
    return sums[0], above
