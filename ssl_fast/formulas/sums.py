"""Sums, reductions and softplus whose bits do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Above this many elements PyTorch splits a reduction across threads, so rounding would depend on their number.
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


def reduce(loss_rows: Tensor, reduction: str, weights: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
    """The rows' losses (N,) times their weights: themselves, their sum, or that divided by the sum of the weights.

    Args:
        loss_rows: (N,) one loss a row.
        reduction: "none", "sum" or "mean".
        weights: (N,) floats, one a row; None weighs all rows alike.
        counted: (N,) bools, the rows whose weight the mean divides by; the loss of the others is 0. None counts all.
    """
    if weights is not None:
        weights = weights.to(loss_rows.dtype)
        loss_rows = loss_rows * weights
    if reduction == "none":
        return loss_rows
    return total(loss_rows) if reduction == "sum" else total(loss_rows) / mean_divisor(loss_rows, weights, counted)


def mean_divisor(loss_rows: Tensor, weights: Tensor | None, counted: Tensor | None) -> int | Tensor:
    """What `reduce` divides a sum by: the number of rows, or the sum of their weights; 1 where no row is counted."""
    if counted is None:
        return loss_rows.numel() if weights is None else total(weights)
    number = counted.sum() if weights is None else total(torch.where(counted, weights, 0))
    return torch.where(counted.any(), number, 1)


def repeated(weights: Tensor | None, rows: int, image_first: bool = False) -> Tensor | None:
    """(rows,) of one weight an image: the views below one another, or with image_first an image's rows together."""
    if weights is None or weights.shape[0] == rows:
        return weights
    each = rows // weights.shape[0]
    return weights.repeat_interleave(each) if image_first else weights.repeat(each)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding on both sides."""
    return by_pieces(lambda piece: torch.nn.functional.softplus(piece, threshold=50), x)


def logsumexp(x: Tensor) -> Tensor:
    """Of each row of x (N, P)."""
    return by_pieces(lambda piece: piece.logsumexp(1), x)
