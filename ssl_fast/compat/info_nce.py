"""InfoNCE of info-nce-pytorch 0.1.4, on our kernels.

    from ssl_fast.compat.info_nce import InfoNCE, info_nce  # was: from info_nce import InfoNCE, info_nce

`ssl_fast.functional.info_nce` is another function: this one has the library's names, order of arguments and errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .inputs import one_dtype, scalar

__all__ = ["InfoNCE", "info_nce"]

PACKAGE = "info_nce"
DISTRIBUTION = "info-nce-pytorch"
VERSIONS = ("0.1",)
REPLACES = {"info_nce": ("InfoNCE", "info_nce")}

_DIMENSIONS = {"unpaired": 2, "paired": 3}  # of negative_keys, by negative_mode


class InfoNCE(nn.Module):
    """`info_nce` as a module; temperature, reduction and negative_mode are read at each call."""

    def __init__(self, temperature: Any = 0.1, reduction: str = "mean", negative_mode: str = "unpaired"):
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        return info_nce(query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: Any = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    """InfoNCE as info-nce-pytorch 0.1.4 computes it: the cross-entropy of each query's positive key.

    query, positive_key: (N, D), normalised here. negative_keys: (M, D) for all queries, which are then the only
        negatives; (N, M, D) with negative_mode="paired", row i's own; None, the other rows of positive_key.
    temperature: a number or a tensor of one element. reduction: mean, sum or none, which gives (N,).

    Raises ValueError as theirs does, and for another negative_mode, where theirs raises UnboundLocalError, and for a
    temperature of 0 or of an element a query. Losses of half types are float32, theirs of that type; a zero row in
    float16 has a similarity of 0, theirs NaN.
    """
    _check(query, positive_key, negative_keys, negative_mode)
    temperature = scalar(temperature)
    if negative_keys is None:
        negatives = None
        query, positive_key = one_dtype(query, positive_key)
    else:
        query, positive_key, negatives = one_dtype(query, positive_key, negative_keys)
    if negatives is not None and not negatives.shape[-2]:  # the positive is alone: a loss of 0
        return 0 * functional.info_nce(
            query, positive_key, torch.zeros_like(positive_key[:1]), 1.0, reduction=reduction
        )
    loss: Tensor = functional.info_nce(query, positive_key, negatives, temperature, reduction=reduction)
    return loss


def _check(query: Tensor, positive_key: Tensor, negative_keys: Tensor | None, negative_mode: str) -> None:
    """The library's errors in its order and words, which programs may look for."""
    if query.dim() != 2:
        raise ValueError("<query> must have 2 dimensions.")
    if positive_key.dim() != 2:
        raise ValueError("<positive_key> must have 2 dimensions.")
    if negative_keys is not None and negative_mode in _DIMENSIONS and negative_keys.dim() != _DIMENSIONS[negative_mode]:
        dimensions = f"{_DIMENSIONS[negative_mode]} dimensions if <negative_mode> == '{negative_mode}'"
        raise ValueError(f"<negative_keys> must have {dimensions}.")
    if len(query) != len(positive_key):
        raise ValueError("<query> and <positive_key> must must have the same number of samples.")
    if negative_keys is not None and negative_mode == "paired" and len(query) != len(negative_keys):
        condition = "If negative_mode == 'paired', then"
        raise ValueError(f"{condition} <negative_keys> must have the same number of samples as <query>.")
    for name, keys in (("positive_key", positive_key), ("negative_keys", negative_keys)):
        if keys is not None and query.shape[-1] != keys.shape[-1]:
            raise ValueError(f"Vectors of <query> and <{name}> should have the same number of components.")
    if negative_keys is not None and negative_mode not in _DIMENSIONS:
        raise ValueError(f"negative_mode: expected unpaired or paired, got {negative_mode!r}")
