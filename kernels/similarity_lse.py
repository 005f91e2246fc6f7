"""Log-sum-exps over similarities, ln sum_k exp(s <u_i, v_k>) over the pairs that a mask leaves, on the GPU.

With P the softmax of the rows, Q of the columns, and W_ik = g_i P_ik + h_k Q_ik: dU_i = s sum_k W_ik v_k and
dV_k = s sum_i W_ik u_i. Rows with each other, and rows and columns at once, take one pass over tiles
(`symmetric_tiles.py`) where the shift |s| can be every row's; else, and for rows alone, `online_softmax.py` walks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients, loss_rows
from .engine.constants import ALL, FIXED, IDS_DIFFER, IDS_EQUAL, IDS_EQUAL_NOT_SELF, NONE, ONLINE, SUMS_ROWS
from .engine.mask import Mask
from .engine.online_softmax import PartialSums, new_partial_sums, online_softmax, split
from .engine.precision import wide
from .engine.scale import Scale, scale_of
from .engine.symmetric_tiles import TileSums, squares, symmetric_tiles
from .engine.unit_rows import UnitRows, keys_of, prepare, product_dtype
from .engine.weighted_rows import SavedSums, weighted_rows


def _checked_mask(
    a: Tensor, b: Tensor | None, ids_a: Tensor | None, ids_b: Tensor | None, mask_code: int, columns: bool
) -> Mask:
    """The mask of an operator's arguments; ValueError where they do not fit."""
    if a.dim() != 2 or not a.numel():
        raise ValueError(f"a: expected the shape (N, D), not empty, got {tuple(a.shape)}")
    if b is not None and (b.dim() != 2 or b.shape[1] != a.shape[1] or not b.numel()):
        raise ValueError(f"b: expected the shape (M, D) for a {tuple(a.shape)}, got {tuple(b.shape)}")
    if not ALL.value <= mask_code <= IDS_EQUAL.value:
        raise ValueError(f"mask: expected 0 to 3, got {mask_code}")
    if b is None and columns:
        raise ValueError("columns: expected b to be given")
    with_ids = mask_code >= IDS_DIFFER.value
    for name, ids, of, wanted in (("ids_a", ids_a, a, with_ids), ("ids_b", ids_b, b, with_ids and b is not None)):
        if (ids is None) == wanted or (wanted and (ids.dtype != torch.int64 or ids.shape != of.shape[:1])):
            raise ValueError(f"{name}: expected int64 of as many rows where the mask has ids, else none")
    if not with_ids:
        return Mask(mask_code)
    ids_a = ids_a.contiguous()
    if b is None:
        # A row's id equals itself, and the row itself does not count.
        code = IDS_EQUAL_NOT_SELF.value if mask_code == IDS_EQUAL.value else mask_code
        return Mask(code, 0, ids_a, ids_a)
    return Mask(mask_code, 0, ids_a, ids_b.contiguous())


def _form(scale: Scale, b: Tensor | None, columns: bool, normalize_a: bool, normalize_b: bool) -> int:
    """The shift is fixed for unit rows that meet each other or from both sides."""
    unit_rows = normalize_a and (b is None or normalize_b)
    return scale.form if unit_rows and (b is None or columns) else ONLINE.value


def _saved(sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(3, rows) of the rows and (3, others) of the columns, each contiguous in the memory of sums."""
    flat = sums.view(-1)
    return flat[: 3 * rows].view(3, rows), flat[3 * rows :].view(3, -1)


def similarity_lse(
    a: Tensor,
    b: Tensor | None,
    ids_a: Tensor | None,
    ids_b: Tensor | None,
    mask_code: int,
    normalize_a: bool,
    normalize_b: bool,
    columns: bool,
    temperature: float,
    temperature_tensor: Tensor | None,
    positive: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_lse (csrc/ops.cpp). sums: see `_saved`."""
    mask = _checked_mask(a, b, ids_a, ids_b, mask_code, columns)
    positive = loss_rows.checked_positive(positive, a)
    if positive is not None and columns and b.shape[0] != a.shape[0]:
        raise ValueError(f"positive: expected as many columns as rows, got {b.shape[0]} and {a.shape[0]}")
    rows, others = a.shape[0], b.shape[0] if columns else 0
    lse, column_lse = (torch.empty(count, dtype=torch.float64, device=a.device) for count in (rows, others))
    sums = torch.empty((SUMS_ROWS, rows + others), dtype=wide(a.dtype), device=a.device)
    ranks = torch.empty((0 if positive is None else 1 + columns, rows), dtype=torch.int64, device=a.device)
    with torch.cuda.device_of(a):
        scale = scale_of(temperature, temperature_tensor, a)
        form = _form(scale, b, columns, normalize_a, normalize_b)
        dtype = a.dtype if b is None else product_dtype(a, b)
        u = v = prepare([a], dtype, a, normalize_a)
        poison = False
        if columns:
            v = prepare([b], dtype, a, normalize_b)
        elif b is not None:
            v, poison = keys_of(b, normalize_b, dtype, a)
        partials, slots = _sums(u, None if b is None else v, scale, form, mask, positive, poison, columns)
        outs = zip(partials, slots, (lse, column_lse), _saved(sums, rows), strict=False)
        for i, (partial, of, out, saved) in enumerate(outs):
            loss_rows.log_sum_exp(partial, scale, of, form, out, saved, None if positive is None else ranks[i])
        return lse, column_lse, ranks, sums


def _sums(
    u: UnitRows,
    v: UnitRows | None,
    scale: Scale,
    form: int,
    mask: Mask,
    positive: Tensor | None,
    poison: bool,
    columns: bool,
) -> tuple[list[PartialSums], list[tuple[int, int]]]:
    """Sums of the rows, and of the columns where asked for; how many slots of them each form fills."""
    tile = u.tile("symmetric_tiles")
    # Of one depth: both kernels' dots are compared with the same positives'.
    walk_tile = u.tile("online_softmax")._replace(depth=tile.depth)
    keys = u if v is None else v
    directions = [(u, keys, mask)] + [(keys, u, mask.transposed())] * columns
    _, down, along = squares(u, keys, tile)
    fixed = [0, 0] if form == ONLINE.value else [along, down]
    slots = [(most, split(x, y, walk_tile).pieces) for most, (x, y, _) in zip(fixed, directions, strict=False)]
    partials = [
        new_partial_sums(max(of), 0, x, positive is not None) for of, (x, *_) in zip(slots, directions, strict=True)
    ]
    if form != ONLINE.value:
        symmetric_tiles(u, v, scale, mask, positive, TileSums(*partials), tile)
    if form != FIXED.value:
        for (x, y, of), partial in zip(directions, partials, strict=True):
            online_softmax(x, y, scale, positive, partial, walk_tile, of, poison, form)
    return partials, slots


def similarity_lse_backward(
    gradient: Tensor,
    column_gradient: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    ids_a: Tensor | None,
    ids_b: Tensor | None,
    mask_code: int,
    normalize_a: bool,
    normalize_b: bool,
    temperature: float,
    temperature_tensor: Tensor | None,
    sums: Tensor,
    a_gradient: bool,
    b_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_lse_backward (csrc/ops.cpp)."""
    columns = column_gradient is not None
    mask = _checked_mask(a, b, ids_a, ids_b, mask_code, columns)
    loss_rows.check_sums(sums, a.shape[0] + (b.shape[0] if columns else 0), a)
    gradient, _, unit = loss_rows.upstream(gradient.to(sums.dtype), NONE, a.shape[0])
    of_rows, of_columns = _saved(sums, a.shape[0])
    other = None
    with torch.cuda.device_of(a):
        if columns:
            column_gradient, _, largest = loss_rows.upstream(
                column_gradient.to(sums.dtype), NONE, b.shape[0]
            )  # fmt: skip
            unit = torch.maximum(unit, largest)
            other = SavedSums(of_columns, column_gradient, unit)
        own = SavedSums(of_rows, gradient, unit)
        scale = scale_of(temperature, temperature_tensor, a)
        form = _form(scale, b, columns, normalize_a, normalize_b)
        dtype = a.dtype if b is None else product_dtype(a, b)
        u = prepare([a], dtype, a, normalize_a)
        if b is None:
            sides = [input_gradients.Side(a, u, a_gradient, lambda: weighted_rows(u, u, scale, own, own, mask, form))]
        else:
            v = prepare([b], dtype, a, normalize_b) if b_gradient else keys_of(b, normalize_b, dtype, a)[0]
            flipped = mask.transposed()
            sides = [
                input_gradients.Side(a, u, a_gradient, lambda: weighted_rows(u, v, scale, own, other, mask, form)),
                input_gradients.Side(b, v, b_gradient, lambda: weighted_rows(v, u, scale, other, own, flipped, form)),
            ]
        out, dt = input_gradients.of_sides(sides, scale, unit, temperature_tensor, 0.5 if b is None else 1.0)
        return out[0], (a.new_empty(0) if b is None else out[1]), dt
