"""The statistics of a loss in O(N D) memory: from sums of rows and of classes, and from what the kernels count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas.classes import class_sums
from ..formulas.rows import rows_of
from ..formulas.scalars import sign_of
from ..formulas.statistics import ContrastiveStats, stats_of
from ..formulas.sums import total
from ..operators import calls
from ..operators.sampled import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from ..annotations import Scalar


@torch.no_grad()
def statistics(
    loss_rows: Tensor,
    above: Tensor,
    positive_mean: Tensor,
    sums: tuple[Tensor, Tensor],
    excluded: Any,
    pairs: int | Tensor,
) -> ContrastiveStats:
    """The statistics of a loss's rows.

    Args:
        loss_rows: the rows' losses, NaN for a row that holds NaN.
        above: of each row, in the order of loss_rows, how many candidates are more similar than its positive.
        positive_mean: () mean similarity of the positive pairs.
        sums: (D,) the sum of all rows u, and that of all rows v: their product is the sum over all pairs.
        excluded: the summed similarity of all pairs that are not negatives, which is subtracted from it.
        pairs: the number of negative pairs.
    """
    negative_sum = sums[0].double() @ sums[1].double() - excluded
    if not isinstance(pairs, Tensor):
        pairs = torch.full((), pairs, device=negative_sum.device)
    negative_mean = torch.where(pairs > 0, negative_sum / pairs, float("nan"))
    means = (mean.detach().to(loss_rows.dtype) for mean in (positive_mean, negative_mean))
    return stats_of(loss_rows, above.flatten(), *means)


def equal_pairs(u: Tensor, v: Tensor, classes_u: Tensor, classes_v: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of <u_i, v_k>, number) of the pairs of one class, in O((N + M) D). Classes: of both, from 0 to N + M - 1."""
    most = u.shape[0] + v.shape[0]
    counts = [class_sums(torch.ones_like(classes), classes, most) for classes in (classes_u, classes_v)]
    sums = total(class_sums(u.double(), classes_u, most) * class_sums(v.double(), classes_v, most))
    return sums, (counts[0] * counts[1]).sum()


@torch.no_grad()
def best_same_class(
    z: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, scale: Scalar, normalize: bool
) -> Tensor:
    """The similarity of each row (N,) with the most similar of the others of its label, by the scale's sign.

    others (M, D): begin with the rows themselves, which do not count. In a pass of its own, some rows at a time, for
    statistics where positives are many. A row with no other row of its label gets -Inf, or Inf where the scale is
    negative.
    """
    u, v, place = rows_of(z, normalize), rows_of(others, normalize), torch.arange(others.shape[0], device=z.device)
    sign = sign_of(scale, u.dtype)
    step, best, found = max(1, CHUNK_ELEMENTS // v.shape[0]), [], []
    with torch.autocast(u.device.type, enabled=False):
        for first in range(0, u.shape[0], step):
            rows = slice(first, min(first + step, u.shape[0]))
            same = (labels[rows, None] == other_labels) & (place[rows, None] != place)
            best.append((sign * (u[rows] @ v.T)).masked_fill(~same, float("-inf")).argmax(1))
            found.append(same.any(1))
    # Rounded as the kernels round what they compare it with.
    similarities = calls.pair_similarity(z, others[torch.cat(best)], normalize, normalize)
    return torch.where(torch.cat(found), similarities, -sign * float("inf"))
