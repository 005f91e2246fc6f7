"""NT-Xent (ssl_fast.reference.nt_xent) on the GPU.

With the fixed shift |s| the exponentials E_ik = exp(s <u_i, u_k> - |s|) are symmetric: tiles above the
diagonal serve rows and columns, and E_ik (a_i + a_k) both terms of the gradient
    dU_i = s [ sum_{negatives k} E_ik (a_i + a_k) u_k - (g_i r_i + g_p(i) r_p(i)) u_p(i) ],
a_i = g_i / Z_i. Where exp(-2|s|) would be no normal number, `online_softmax.py` takes over. A
temperature on the device is not read here: both are launched, and the one without work ends at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients, loss_rows
from .engine.constants import FIXED, NOT_SELF_NOR_PARTNER, ONLINE
from .engine.mask import Mask
from .engine.online_softmax import new_partial_sums, online_softmax, split
from .engine.precision import wide
from .engine.scale import scale_of
from .engine.symmetric_tiles import TileSums, squares, symmetric_tiles
from .engine.tile import pair_dots
from .engine.unit_rows import prepare
from .engine.weighted_rows import SavedSums, weighted_rows


def _negatives(half: int) -> Mask:
    return Mask(NOT_SELF_NOR_PARTNER.value, half)


def _check_views(z1: Tensor, z2: Tensor) -> None:
    if z1.dim() != 2 or z1.shape != z2.shape or not z1.numel():
        raise ValueError(f"z2: expected the shape (N, D) of z1, not empty, got {tuple(z1.shape)} and {tuple(z2.shape)}")


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float, temperature_tensor: Tensor | None, reduction: int, return_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent (csrc/ops.cpp). sums: see constants.SUMS_ROWS."""
    _check_views(z1, z2)
    loss_rows.check_reduction(reduction)
    with torch.cuda.device_of(z1):
        scale = scale_of(temperature, temperature_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)
        half = z1.shape[0]
        tile = rows.tile("symmetric_tiles")
        # Of one depth: both kernels' dots are compared with the same positives'.
        walk_tile = rows.tile("online_softmax")._replace(depth=tile.depth)
        positive = pair_dots(rows, rows, tile, half)
        down = squares(rows, rows, tile).down
        share = split(rows, rows, walk_tile)
        partial = new_partial_sums(
            max(down, share.pieces),
            max(down * (down + 1) // 2, share.blocks * share.pieces),
            rows,
            with_ranks=return_stats,
        )
        if scale.form != ONLINE.value:
            symmetric_tiles(
                rows, None, scale, _negatives(half), positive if return_stats else None, TileSums(partial), tile
            )
        if scale.form != FIXED.value:
            online_softmax(rows, rows, scale, positive, partial, walk_tile, _negatives(half), launched=scale.form)
        slots = down, share.pieces
        return loss_rows.losses(partial, positive, scale, slots, scale.form, reduction, 2 * half - 2)


def nt_xent_backward(
    gradient: Tensor,
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    reduction: int,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent_backward (csrc/ops.cpp)."""
    _check_views(z1, z2)
    half, count = z1.shape[0], 2 * z1.shape[0]
    loss_rows.check_sums(sums, count, z1)
    gradient, divisor, unit = loss_rows.upstream(gradient, reduction, count)
    with torch.cuda.device_of(z1):
        scale = scale_of(temperature, temperature_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)
        softmax = SavedSums(sums, None if unit is None else gradient, unit)
        weighted = weighted_rows(rows, rows, scale, softmax, softmax, _negatives(half), scale.form)
        wants_temperature = temperature_tensor is not None
        along = torch.empty(count, dtype=torch.float64, device=z1.device) if wants_temperature else None
        dz = (
            torch.empty(z1.shape, dtype=z1.dtype, device=z1.device),
            torch.empty(z2.shape, dtype=z2.dtype, device=z2.device),
        )
        for first, out in zip((0, half), dz, strict=True):
            input_gradients.row_gradients(
                out, rows, scale, weighted, gradient, divisor, unit, rows, sums[1], half, True, first, along
            )  # fmt: skip
        if wants_temperature:
            return *dz, input_gradients.temperature_gradient(along, scale, 0.5, temperature_tensor)
        return *dz, torch.empty((), dtype=wide(z1.dtype), device=z1.device)
