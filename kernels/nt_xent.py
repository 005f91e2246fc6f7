"""NT-Xent (ssl_fast.reference.nt_xent) on the GPU.

With the fixed shift |s| the exponentials E_ik = exp(s <u_i, u_k> - |s|) are symmetric: tiles on and above the diagonal
serve rows and columns, and E_ik (a_i + a_k) serves both terms of the gradient
    dU_i = s [ sum_{negatives k} E_ik (a_i + a_k) u_k - (g_i r_i + g_p(i) r_p(i)) u_p(i) ],
a_i = g_i / Z_i. Where exp(-2 |s|) would be no normal number, `online_softmax` takes the place of `symmetric_tiles`. A
scale on the device is not read by the host: both are launched, and the one without work ends at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients, loss_rows
from .engine.constants import FIXED, NOT_SELF_NOR_PARTNER, ONLINE, SHARE
from .engine.mask import Mask
from .engine.online_softmax import new_partial_sums, online_softmax, split
from .engine.precision import accumulator_dtype
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
    z1: Tensor,
    z2: Tensor,
    scale_number: float,
    scale_tensor: Tensor | None,
    reduction: int,
    return_stats: bool,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent: (loss, stats, sums) of two views (N, D).

    loss: (2 N,) or 0-D. stats: (4,), or (0,) unless asked for. sums: (3, 2 N), see constants.SUMS_ROWS.
    keep: for the CPU alone; no pair is kept here.
    """
    _check_views(z1, z2)
    loss_rows.check_reduction(reduction)
    with torch.cuda.device_of(z1):
        scale = scale_of(scale_number, scale_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)  # (2 N, width)
        half = z1.shape[0]
        mask = _negatives(half)
        tile = rows.tile("symmetric_tiles")
        # Both kernels compare their dots with the same positives', so their tiles have the same depth.
        walk_tile = rows.tile("online_softmax")._replace(depth=tile.depth)
        positive = pair_dots(rows, rows, tile, half)  # (2 N,)
        down = squares(rows, rows, tile).down
        share = split(rows, rows, walk_tile)
        partial = new_partial_sums(
            max(down, share.pieces),
            max(down * (down + 1) // 2, share.blocks * share.pieces),
            rows,
            with_ranks=return_stats,
        )
        if scale.form != ONLINE.value:
            symmetric_tiles(rows, None, scale, mask, positive if return_stats else None, TileSums(partial), tile)
        if scale.form != FIXED.value:
            online_softmax(rows, rows, scale, positive, partial, walk_tile, mask, host_form=scale.form)
        slots = down, share.pieces
        return loss_rows.losses(partial, positive, scale, slots, scale.form, reduction, 2 * half - 2)


def nt_xent_backward(
    gradient: Tensor,
    z1: Tensor,
    z2: Tensor,
    scale_number: float,
    scale_tensor: Tensor | None,
    reduction: int,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent_backward: the gradients of z1 and z2 (N, D) and of the scale (0-D).

    gradient: of the loss, (2 N,) or 0-D. sums (3, 2 N): as the forward pass returned them.
    """
    _check_views(z1, z2)
    half, count = z1.shape[0], 2 * z1.shape[0]
    loss_rows.check_sums(sums, count, z1)
    gradient, divisor, unit = loss_rows.upstream(gradient, reduction, count)
    with torch.cuda.device_of(z1):
        scale = scale_of(scale_number, scale_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)  # (2 N, width)
        saved = SavedSums(sums, None if unit is None else gradient, unit)
        weighted = weighted_rows(rows, rows, scale, saved, saved, _negatives(half), scale.form)
        projections = None
        if scale_tensor is not None:
            projections = torch.empty(count, dtype=torch.float64, device=z1.device)
        dz = tuple(torch.empty(z.shape, dtype=z.dtype, device=z.device) for z in (z1, z2))
        shares = sums[SHARE.value]
        for first, out in zip((0, half), dz, strict=True):
            input_gradients.row_gradients(
                out, rows, scale, weighted, gradient, divisor, unit, rows, shares, half, True, first, projections
            )  # fmt: skip
        if scale_tensor is not None:
            return *dz, input_gradients.scale_gradient(projections, scale, 0.5, scale_tensor)
        return *dz, torch.empty((), dtype=accumulator_dtype(z1.dtype), device=z1.device)
