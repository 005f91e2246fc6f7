"""The losses as functions: arguments are checked here, then the chosen backend runs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends, checks, reference
from .queue import NegativeQueue


def _split(temperature) -> tuple[float, Tensor | None]:
    """A temperature as the operators take it: a number, or a tensor that may want a gradient."""
    return (1.0, temperature) if isinstance(temperature, Tensor) else (float(temperature), None)


def _result(loss: Tensor, stats: Tensor, return_stats: bool):
    return (loss, reference.ContrastiveStats(*stats.unbind())) if return_stats else loss


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
):
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), without its 2N x 2N matrix.

    With u = normalize(cat([z1, z2])), every row against all others but itself:
    loss_i = logsumexp_{k != i}(u_i . u_k / temperature) - u_i . u_partner(i) / temperature.
    `ssl_fast.reference.nt_xent` is the same in plain PyTorch.

    z1, z2: (N, D) float32, float64, bfloat16 or float16, row i of both from the same image, any
        strides; normalised inside. NaN or Inf gives NaN.
    temperature: a number of size 1e-8 to 1e8, or a 0-D tensor, which gets its gradient (a value
        outside gives NaN).
    reduction: "mean" or "sum" over the 2N rows, or "none": (2N,), the rows of z1 first.
    return_stats: also return `ContrastiveStats` (top-1, top-5, mean similarities).

    Returns float32 (float64 for float64 inputs). Memory O(N D). The same bits at any thread count.
    Raises ValueError or TypeError for arguments that do not fit.
    """
    checks.pair("z2", z2, "z1", z1)
    checks.temperature(temperature, z1.device)
    checks.reduction(reduction)
    if backends.choose("nt_xent", z1.device.type) == "reference":
        return reference.nt_xent(z1, z2, temperature, reduction, return_stats)
    loss, stats, _ = torch.ops.ssl_fast.nt_xent(
        z1, z2, *_split(temperature), checks.REDUCTIONS.index(reduction), return_stats
    )
    return _result(loss, stats, return_stats)


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | NegativeQueue | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
):
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    With q, k, n normalised: loss_i = logsumexp(q_i . [k_i, n_1, n_2, ...] / temperature)
    - q_i . k_i / temperature. `ssl_fast.reference.info_nce` is the same in plain PyTorch.

    query, positive: (N, D) float32, float64, bfloat16 or float16, any strides; normalised inside.
    negatives: None (the other rows of `positive`, one-sided), (M, D) shared by all queries,
        (N, M, D) row i's own, or a `NegativeQueue`, whose rows are used as they are. Any float
        dtype. Tensors are normalised and get their gradient; a queue gets none.
    temperature: a number of size 1e-8 to 1e8, or a 0-D tensor, which gets its gradient (a value
        outside gives NaN).
    reduction: "mean" or "sum" over the N queries, or "none": (N,).
    return_stats: also return `ContrastiveStats` (top-1, top-5, mean similarities).

    Returns float32 (float64 for float64 inputs). No N x M array is made. The queue may be enqueued
    to before the backward pass. Raises ValueError or TypeError for arguments that do not fit.
    """
    checks.pair("positive", positive, "query", query)
    rows = _negative_rows(query, negatives)
    checks.temperature(temperature, query.device)
    checks.reduction(reduction)
    if backends.choose("info_nce", query.device.type) == "reference":
        return reference.info_nce(query, positive, negatives, temperature, reduction, return_stats)
    normalize_negatives = isinstance(negatives, Tensor)
    loss, stats, *_ = torch.ops.ssl_fast.info_nce(
        query,
        positive,
        rows,
        normalize_negatives,
        *_split(temperature),
        checks.REDUCTIONS.index(reduction),
        return_stats,
    )
    return _result(loss, stats, return_stats)


def _negative_rows(query: Tensor, negatives) -> Tensor | None:
    """The checked tensor of negatives: (M, D), (N, M, D) or None."""
    if negatives is None:
        return None
    rows = negatives.queue if isinstance(negatives, NegativeQueue) else negatives
    if not isinstance(rows, Tensor):
        raise TypeError(f"negatives: expected None, a Tensor or a NegativeQueue, got {type(negatives).__name__}")
    checks.embeddings("negatives", rows, (2, 3))
    if rows.shape[-1] != query.shape[1]:
        raise ValueError(f"negatives: expected last dimension {query.shape[1]} as query, got {tuple(rows.shape)}")
    if rows.dim() == 3 and rows.shape[0] != query.shape[0]:
        raise ValueError(f"negatives: expected {query.shape[0]} groups as query has rows, got {tuple(rows.shape)}")
    checks.same_device("negatives", rows, "query", query)
    return rows
