"""The log-sum-exp of which the losses are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas.rows import in_full_precision, rows_of
from ..formulas.scalars import in_range

if TYPE_CHECKING:
    from ..annotations import Scalar


def _allowed(a: Tensor, b: Tensor, exclude: Any, only: Any) -> Tensor:
    """The mask (N, M) of the pairs that count."""
    itself = torch.arange(a.shape[0], device=a.device)[:, None] == torch.arange(b.shape[0], device=a.device)
    if only is not None:
        same = only[0][:, None] == only[1]
        return same & ~itself if a is b else same
    if exclude is None:
        return torch.ones_like(itself)
    return ~itself if exclude == "self" else exclude[0][:, None] != exclude[1]


@in_full_precision
def similarity_lse(
    a: Tensor,
    b: Tensor,
    scale: Scalar = 10.0,
    *,
    normalize: bool = True,
    exclude: Any = None,
    only: Any = None,
    columns: bool = False,
) -> Any:
    """lse_i = log sum_k exp(scale <u_i, v_k>) over the allowed k; -Inf where there is none.

    Allowed are all k; with exclude="self" k != i; with exclude=(ids of a, ids of b) those whose id
    differs; with `only` those whose id is equal and, where b is a, k != i. columns: of each column too.
    """
    u = rows_of(a, normalize)  # (N, D)
    v = u if b is a else rows_of(b, normalize).to(u.dtype)  # (M, D)
    logits = (in_range(scale) * (u @ v.T)).masked_fill(~_allowed(a, b, exclude, only), float("-inf"))  # (N, M)
    return (logits.logsumexp(1), logits.logsumexp(0)) if columns else logits.logsumexp(1)
