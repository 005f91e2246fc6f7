"""The operators that losses are composed of, on the CPU and the GPU: see csrc/ops.cpp for what they compute.

Losses call these after their checks, and only where a kernel was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checks
from .rows import ContrastiveStats, finite_rows, reduce, softplus, stats_of, total, unit_rows

if TYPE_CHECKING:
    from .annotations import Scalar

# The pairs (i, k) that count: all; k != i; those whose ids differ; those whose ids are equal.
ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL = range(4)
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
    code = checks.REDUCTIONS.index(reduction)
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


@torch.no_grad()
def statistics(
    loss_rows: Tensor,
    ranks: Tensor,
    positive_mean: Tensor,
    sums: tuple[Tensor, Tensor],
    excluded: Any,
    pairs: int | Tensor,
) -> ContrastiveStats:
    """sums: of all rows u and of all rows v. excluded: sum of the similarities of pairs that are no negatives.

    pairs: how many are. ranks: of each row in the order of loss_rows.
    """
    negative_sum = sums[0].double() @ sums[1].double() - excluded
    if not isinstance(pairs, Tensor):
        pairs = torch.full((), pairs, device=negative_sum.device)
    negative_mean = torch.where(pairs > 0, negative_sum / pairs, float("nan"))
    means = (mean.detach().to(loss_rows.dtype) for mean in (positive_mean, negative_mean))
    return stats_of(loss_rows, ranks.flatten(), *means)


def dense(labels: Tensor) -> Tensor:
    """Labels (N,) -> classes from 0 to N - 1, equal where they were; without waiting for a device."""
    ordered, order = labels.sort(stable=True)
    new = torch.cat([ordered.new_zeros(1, dtype=torch.int64), (ordered[1:] != ordered[:-1]).long()])
    return torch.empty_like(order).scatter_(0, order, new.cumsum(0))


def equal_pairs(u: Tensor, v: Tensor, classes_u: Tensor, classes_v: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of <u_i, v_k>, number) of the pairs of one class, in O((N + M) D). Classes: of both, from 0 to N + M - 1."""

    def by_class(x: Tensor, classes: Tensor) -> Tensor:
        sums = x.new_zeros(u.shape[0] + v.shape[0], *x.shape[1:])
        # On a GPU index_add is atomic; index_put sorts.
        return sums.index_put((classes,), x, accumulate=True) if x.is_cuda else sums.index_add(0, classes, x)

    counts = [by_class(torch.ones_like(classes), classes) for classes in (classes_u, classes_v)]
    sums = total(by_class(u.double(), classes_u) * by_class(v.double(), classes_v))
    return sums, (counts[0] * counts[1]).sum()


def sign_of(temperature: Scalar, dtype: torch.dtype) -> Any:
    """1 or -1 for a number; for a tensor a tensor where it lies, which is not read."""
    if isinstance(temperature, Tensor):
        return torch.sign(temperature.detach().to(dtype))
    return math.copysign(1.0, temperature)


# Elements of a matrix, or of gathered rows, that may exist at a time.
CHUNK_ELEMENTS = 1 << 22


@torch.no_grad()
def best_same_class(z: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, temperature: Scalar) -> Tensor:
    """The similarity of each row (N,) with the most similar of the others of its label, by the temperature's sign.

    others (M, D): begin with the rows themselves, which do not count. In a pass of its own, some rows at a time, for
    statistics where positives are many. Without one -+Inf.
    """
    u, v, place = unit_rows(z), unit_rows(others), torch.arange(others.shape[0], device=z.device)
    sign = sign_of(temperature, u.dtype)
    step, best, found = max(1, CHUNK_ELEMENTS // v.shape[0]), [], []
    with torch.autocast(u.device.type, enabled=False):
        for first in range(0, u.shape[0], step):
            rows = slice(first, min(first + step, u.shape[0]))
            same = (labels[rows, None] == other_labels) & (place[rows, None] != place)
            best.append((sign * (u[rows] @ v.T)).masked_fill(~same, float("-inf")).argmax(1))
            found.append(same.any(1))
    # Rounded as the kernels round what they compare it with.
    similarities = pair_similarity(z, others[torch.cat(best)])
    return torch.where(torch.cat(found), similarities, -sign * float("inf"))


class _SampledSimilarity(torch.autograd.Function):
    """<u_i, bank_j> for j in index_i, gathering a part of the rows at a time, in the dtype of u."""

    @staticmethod
    def _pieces(x: Tensor, bank: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows of x, the bank's rows (.., m, D) that they meet)."""
        step = max(1, CHUNK_ELEMENTS // (index.shape[1] * bank.shape[1]))
        for own, places in zip(x.split(step), index.split(step), strict=True):
            # index_select refuses negative places, which indexing would count from the end.
            rows = bank.index_select(0, places.flatten()).view(*places.shape, -1)
            yield own, finite_rows(rows).to(x.dtype)

    @staticmethod
    def forward(u: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            pieces = _SampledSimilarity._pieces(u, bank, index)
            return torch.cat([(rows @ own[:, :, None])[:, :, 0] for own, rows in pieces])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bank, index = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            pieces = _SampledSimilarity._pieces(gradient, bank, index)
            return torch.cat([(own[:, None] @ rows)[:, 0] for own, rows in pieces]), None, None


def sampled_similarity(u: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """(N, m) similarities of rows (N, D) with the rows index (N, m) of the bank, which gets no gradient."""
    return _SampledSimilarity.apply(u, bank, index)
