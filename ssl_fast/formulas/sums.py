"""Sums, reductions and softplus whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# PyTorch shares out more elements than this among its threads, and rounds by how many there are.
ONE_THREAD = 1 << 15


def total(x: Tensor) -> Tensor:
    """The sum of all elements, in an order that their number alone decides: the same bits at any thread count."""
    x = x.flatten()
    while x.numel() > ONE_THREAD:
        padding = -x.numel() % 1024
        x = torch.cat([x, x.new_zeros(padding)]).view(-1, 1024).sum(1)
    return x.sum()


def row_totals(x: Tensor) -> Tensor:
    """The sum of each row of x (N, m), in an order that m alone decides."""
    padding = -x.shape[1] % 1024
    return torch.nn.functional.pad(x, (0, padding)).view(x.shape[0], -1, 1024).sum(2).sum(1)


def by_pieces(function: Callable[..., Any], *tensors: Tensor) -> Tensor:
    """function(*tensors) of rows, some rows at a time: exp and log differ where a thread's share ends."""
    step = max(1, ONE_THREAD * tensors[0].shape[0] // tensors[0].numel())
    if tensors[0].shape[0] <= step:
        return function(*tensors)
    return torch.cat([function(*pieces) for pieces in zip(*(x.split(step) for x in tensors), strict=True)])


def reduce(loss_rows: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses (N,), or the rows themselves."""
    if reduction == "mean":
        return total(loss_rows) / loss_rows.numel()
    return total(loss_rows) if reduction == "sum" else loss_rows


def reduce_with_positives(loss_rows: Tensor, positives: Tensor, reduction: str, count_without_positive: bool) -> Tensor:
    """positives (N,): how many each row has. Rows without one are 0, and not in the mean unless they count."""
    if reduction != "mean" or count_without_positive:
        return reduce(loss_rows, reduction)
    return total(loss_rows) / (positives > 0).sum().clamp_min(1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding on both sides."""
    return by_pieces(lambda piece: torch.nn.functional.softplus(piece, threshold=50), x)


def logsumexp(x: Tensor) -> Tensor:
    """Of each row of x (N, P)."""
    return by_pieces(lambda piece: piece.logsumexp(1), x)
