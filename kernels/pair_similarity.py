"""Similarities of rows that belong together, <u_i, v_i>, on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import gradients
from .reduction import NONE, upstream
from .rows import Rows, check_pairs, pair_dots, prepare, product_dtype, wide
from .scale import scale_of


def _rows(a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool) -> tuple[Rows, Rows]:
    dtype = product_dtype(a, b)
    return prepare([a], dtype, a, normalize_a), prepare([b], dtype, a, normalize_b)


def pair_similarity(a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool) -> Tensor:
    """The operator ssl_fast::pair_similarity (csrc/ops.cpp): rounded as the tiles of `similarity_lse` are."""
    check_pairs(a, b)
    with torch.cuda.device_of(a):
        u, v = _rows(a, b, normalize_a, normalize_b)
        return pair_dots(u, v, u.tile("exp_sums")).to(wide(a.dtype))


def pair_similarity_backward(
    gradient: Tensor, a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool
) -> tuple[Tensor, Tensor]:
    """The operator ssl_fast::pair_similarity_backward (csrc/ops.cpp)."""
    check_pairs(a, b)
    gradient = upstream(gradient, NONE, a.shape[0])[0]
    with torch.cuda.device_of(a):
        u, v = _rows(a, b, normalize_a, normalize_b)
        # A positive is subtracted: with s = -1 it is added.
        scale = scale_of(-1.0, None, a)
        out = []
        for x, own, other in ((a, u, v), (b, v, u)):
            out.append(torch.empty(x.shape, dtype=x.dtype, device=x.device))
            gradients.row_gradients(out[-1], own, scale, None, gradient, partners=other)
        return out[0], out[1]
