"""Typed calls of the operators, on the CPU and the GPU; csrc/operators/schemas.cpp says what each computes.

The losses call these after their checks, and only where a kernel was chosen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.sums import reduce, softplus
from .codes import REDUCTIONS

if TYPE_CHECKING:
    from ..annotations import Scalar

LN2, LOG2E = math.log(2), math.log2(math.e)


def split(temperature: Scalar) -> tuple[float, Tensor | None]:
    """A temperature as the operators take it: a number, or a tensor that may want a gradient."""
    return (1.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)


def similarity_lse(
    a: Tensor,
    b: Tensor | None,
    mask: int,
    temperature: Scalar,
    ids: tuple[Tensor | None, Tensor | None] = (None, None),
    normalize: tuple[bool, bool] = (True, True),
    columns: bool = False,
    positive: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(lse (N,), of columns (M,) or (0,), both float64, ranks (directions, N) of `positive`, similarities, or (0, N)).

    b: None for a itself, which takes half the products.
    """
    lse, column_lse, ranks, _ = torch.ops.ssl_fast.similarity_lse(
        a, b, *ids, mask, *normalize, columns, *split(temperature), None if positive is None else positive.detach()
    )
    return lse, column_lse, ranks


def scores(similarities: Tensor, temperature: Scalar) -> Tensor:
    """similarities / temperature in float64, as it is subtracted from a log-sum-exp as large as itself.

    With the scale rounded as the kernels round theirs, in powers of two: then what should cancel does.
    """
    if isinstance(temperature, Tensor):
        scale = (temperature.double().reciprocal() * LOG2E).to(similarities.dtype)
    else:
        scale = torch.full((), 1 / temperature * LOG2E, dtype=similarities.dtype, device=similarities.device)
    return similarities.double() * (scale.double() * LN2)


def positive_loss(
    lse: Tensor,
    positive: Tensor,
    temperature: Scalar,
    reduction: str,
    weights: Tensor | None = None,
    in_denominator: bool = True,
) -> Tensor:
    """The reduced losses of rows from their log-sum-exps and their positives' similarities.

    lse (R N,) over the negatives, float64: R rows for each of positive (N,), below one another. in_denominator:
    whether the positive is there too, softplus(lse - s p), or not, lse - s w p. weights (N,): w, without gradient.
    """
    if lse.device.type != "cpu":
        return composed_positive_loss(lse, positive, temperature, reduction, weights, in_denominator)
    code = REDUCTIONS.index(reduction)
    return torch.ops.ssl_fast.positive_loss(lse, positive, weights, in_denominator, *split(temperature), code)


def composed_positive_loss(
    lse: Tensor,
    positive: Tensor,
    temperature: Scalar,
    reduction: str,
    weights: Tensor | None = None,
    in_denominator: bool = True,
) -> Tensor:
    """`positive_loss` in plain PyTorch, on any device."""
    weighted = positive if weights is None else weights * positive
    # The positive's part last: what it leaves of the loss may be tiny.
    x = lse - scores(weighted, temperature).repeat(lse.shape[0] // positive.shape[0])
    return reduce((softplus(x) if in_denominator else x).to(positive.dtype), reduction)


def pair_similarity(a: Tensor, b: Tensor, normalize_a: bool = True, normalize_b: bool = True) -> Tensor:
    """<u_i, v_i> (N,) of the rows that belong together, rounded as similarity_lse does."""
    return torch.ops.ssl_fast.pair_similarity(a, b, normalize_a, normalize_b)


def class_similarity(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of x (N, D) the sum of its similarities with the other rows of its label, and how many they are."""
    return torch.ops.ssl_fast.class_similarity(x, labels)


def similarity_softplus(
    a: Tensor, b: Tensor, normalize: bool, temperature: Scalar, bias: Scalar, positive: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(row i's sum over k != i of softplus(s <u_i, v_k> + bias) (N,), ranks (2, N) of `positive` or (0, N))."""
    if not isinstance(bias, Tensor):
        bias = torch.full((), bias, dtype=torch.float64, device=a.device)
    sums, ranks = torch.ops.ssl_fast.similarity_softplus(
        a, b, normalize, *split(temperature), bias, None if positive is None else positive.detach()
    )
    return sums[0], ranks
