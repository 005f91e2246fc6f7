"""What SupCon subtracts: for each row the sum of its similarities with the other rows of its label, from class sums.

O(N D) additions that PyTorch's own functions do, in a fixed order. With S_c the sum of the unit rows of a class and
T_c that of g_p u_p: dU_i = g_i (S_c - u_i) + T_c - g_i u_i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import rows as plain
from ..formulas.classes import dense, same_class_similarity, same_class_sums
from .engine import input_gradients, loss_rows
from .engine.constants import NONE
from .engine.precision import accumulator_dtype
from .engine.scale import scale_of
from .engine.unit_rows import prepare


def _check(x: Tensor, labels: Tensor) -> None:
    if x.dim() != 2 or not x.numel():
        raise ValueError(f"x: expected the shape (N, D), not empty, got {tuple(x.shape)}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 of {x.shape[0]} rows, got {labels.dtype} {tuple(labels.shape)}")


def class_similarity(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The operator ssl_fast::class_similarity of x (N, D), labels (N,): the sums, and how many others share a label."""
    _check(x, labels)
    return same_class_similarity(plain.unit_rows(x), labels)


def class_similarity_backward(gradient: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The operator ssl_fast::class_similarity_backward: the gradient of x (N, D). gradient: (N,)."""
    _check(x, labels)
    gradient = loss_rows.upstream(gradient, NONE, x.shape[0])[0]
    u, classes = plain.unit_rows(x), dense(labels)
    own = gradient[:, None].to(accumulator_dtype(x.dtype)) * u
    du = gradient[:, None] * (same_class_sums(u, classes) - u) + same_class_sums(own, classes) - own
    with torch.cuda.device_of(x):
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, one = prepare([x], x.dtype, x, on_tensor_cores=False), scale_of(1.0, None, x)
        input_gradients.row_gradients(out, rows, one, du.contiguous(), torch.ones_like(gradient))
        return out
