"""Similarities of rows that belong together, <u_i, v_i>, on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients
from .engine.constants import NONE
from .engine.loss_rows import upstream
from .engine.precision import accumulator_dtype
from .engine.scale import scale_of
from .engine.tile import pair_dots
from .engine.unit_rows import UnitRows, check_pairs, prepare, product_dtype


def _rows(a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool) -> tuple[UnitRows, UnitRows]:
    dtype = product_dtype(a, b)
    return prepare([a], dtype, a, normalize_a), prepare([b], dtype, a, normalize_b)


def pair_similarity(a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool) -> Tensor:
    """The operator ssl_fast::pair_similarity: (N,) of a and b (N, D), rounded as the tiles of `similarity_lse` are."""
    check_pairs(a, b)
    with torch.cuda.device_of(a):
        u, v = _rows(a, b, normalize_a, normalize_b)
        return pair_dots(u, v, u.tile("symmetric_tiles")).to(accumulator_dtype(a.dtype))


def pair_similarity_backward(
    gradient: Tensor, a: Tensor, b: Tensor, normalize_a: bool, normalize_b: bool
) -> tuple[Tensor, Tensor]:
    """The operator ssl_fast::pair_similarity_backward: the gradients of a and b (N, D). gradient: (N,)."""
    check_pairs(a, b)
    gradient = upstream(gradient, NONE, a.shape[0])[0]
    with torch.cuda.device_of(a):
        u, v = _rows(a, b, normalize_a, normalize_b)
        # row_gradients subtracts the partner's row; with a scale of -1 it adds it.
        scale = scale_of(-1.0, None, a)
        out = []
        for x, own, other in ((a, u, v), (b, v, u)):
            out.append(torch.empty(x.shape, dtype=x.dtype, device=x.device))
            input_gradients.row_gradients(out[-1], own, scale, None, gradient, partners=other)
        return out[0], out[1]
