"""Row sums of softplus(s <u_i, v_k> + bias) over k != i on the GPU: the negatives of losses of sigmoids.

With sigma_ik the sigmoid of the same score: dU_i = s g_i sum_k sigma_ik v_k, dV_k = s sum_i g_i sigma_ik u_i, and
the bias gets sum_i g_i sum_k sigma_ik, whose inner sums the forward pass keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients, loss_rows
from .engine.constants import NONE, NOT_SELF, SIGMOID
from .engine.mask import Mask
from .engine.online_softmax import PartialSums
from .engine.precision import accumulator_dtype
from .engine.scale import scale_of
from .engine.symmetric_tiles import TileSums, squares, symmetric_tiles
from .engine.unit_rows import check_pairs, prepare, product_dtype
from .engine.weighted_rows import SavedSums, weighted_rows

NEGATIVES = Mask(NOT_SELF.value)


def _check(a: Tensor, b: Tensor, bias: Tensor) -> None:
    check_pairs(a, b)
    if bias.dim() != 0:
        raise ValueError(f"bias: expected a 0-D tensor, got {tuple(bias.shape)}")


def _on_device(bias: Tensor, a: Tensor) -> Tensor:
    """The bias (0-D) on the device of a."""
    if bias.device == a.device:
        return bias.detach()
    return torch.full((), bias.item(), dtype=torch.float64, device=a.device)


def similarity_softplus(
    a: Tensor,
    b: Tensor,
    normalize: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    bias: Tensor,
    positive: Tensor | None,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_softplus of a and b (N, D), with a 0-D bias: (sums, counts, kept).

    sums (2, N): of softplus, and of the sigmoids, for the backward pass. counts: with the positives' similarities
    `positive` (N,), how many pairs rank above them, (2, N) of rows and columns; else (0, N).
    kept: (0,), since nothing is kept on a GPU, whatever `keep` says.
    """
    _check(a, b, bias)
    count, device = a.shape[0], a.device
    positive = loss_rows.checked_positive(positive, a)
    with torch.cuda.device_of(a):
        scale = scale_of(scale_number, scale_tensor, a)
        u, v = (prepare([x], product_dtype(a, b), a, normalize) for x in (a, b))
        tile = u.tile("symmetric_tiles")
        _, down, along = squares(u, v, tile)
        sums = torch.empty((2, along, count), dtype=torch.float64, device=device)
        ranks = [
            None if positive is None else torch.empty((slots, count), dtype=torch.int32, device=device)
            for slots in (along, down)
        ]
        of_rows, of_columns = (PartialSums(sums[0] if i == 0 else None, None, ranks[i], None, None) for i in (0, 1))
        tile_sums = TileSums(of_rows, of_columns, sums[1])
        symmetric_tiles(u, v, scale, NEGATIVES, positive, tile_sums, tile, _on_device(bias, a))
        counts = torch.empty((0, count), dtype=torch.int64, device=device)
        if positive is not None:
            counts = torch.stack([part.sum(0) for part in ranks])
        wide = accumulator_dtype(a.dtype)
        return sums.sum(1).to(wide), counts, torch.empty(0, dtype=wide, device=device)


def similarity_softplus_backward(
    gradient: Tensor,
    a: Tensor,
    b: Tensor,
    normalize: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    bias: Tensor,
    sums: Tensor,
    kept: Tensor,
    a_gradient: bool,
    b_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_softplus_backward: the gradients of a, b, the scale and the bias.

    gradient (N,): of the sums of softplus. sums (2, N) and kept (0,): as the forward pass returned them.
    a_gradient, b_gradient: whether the gradients of a and b are asked for; they are (0,) if not.
    """
    _check(a, b, bias)
    loss_rows.check_saved("sums", sums, (2, a.shape[0]), a)
    gradient, _, unit = loss_rows.upstream(gradient, NONE, a.shape[0])
    with torch.cuda.device_of(a):
        scale = scale_of(scale_number, scale_tensor, a)
        u, v = (prepare([x], product_dtype(a, b), a, normalize) for x in (a, b))
        saved, on_device = SavedSums(sums, gradient, unit), _on_device(bias, a)
        form = SIGMOID.value
        sides = [
            input_gradients.Side(
                a, u, a_gradient, lambda: weighted_rows(u, v, scale, saved, None, NEGATIVES, form, on_device)
            ),
            input_gradients.Side(
                b, v, b_gradient, lambda: weighted_rows(v, u, scale, None, saved, NEGATIVES, form, on_device)
            ),
        ]
        (da, db), ds = input_gradients.gradients_of_sides(sides, scale, unit, scale_tensor, 1.0)
        dbias = (gradient.double() * sums[1]).sum().to(bias.device, bias.dtype)
        return da, db, ds, dbias
