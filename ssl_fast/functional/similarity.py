"""The log-sum-exp of which the losses are made, as a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.scalars import on_device
from ..operators import calls
from ..operators.codes import ALL, IDS_DIFFER, IDS_EQUAL, NOT_SELF
from ._dispatch import runs_reference

if TYPE_CHECKING:
    from ..annotations import Ids


def similarity_lse(
    a: Tensor,
    b: Tensor,
    scale: float | Tensor = 10.0,
    exclude: str | tuple[Tensor, Tensor] | None = None,
    only: tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
    columns: bool = False,
) -> Any:
    """What all these losses are made of: lse_i = log sum_k exp(scale <u_i, v_k>) over the pairs that count.

    a, b: (N, D) and (M, D); where b is a, half the products are computed. scale: a number or a 0-D tensor of
    size 1e-8 to 1e8; a, b and scale get their gradient.
    exclude: None, "self" (k = i does not count) or (ids of a (N,), ids of b (M,)): equal ids do not count.
    only: (ids of a, ids of b): only equal ids count, and not k = i where b is a; then both ids are one tensor.
    normalize: False takes the rows as they are. columns: also the sums over i, of each column.

    Returns (N,), with columns ((N,), (M,)); -Inf where nothing counts.
    """
    checks.embeddings("a", a)
    checks.embeddings("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected {a.shape[1]} columns as a, got {tuple(b.shape)}")
    checks.same_device("b", b, "a", a)
    checks.scale("scale", scale, a.device)
    scale = on_device(scale, a.device)
    checks.flags(normalize=normalize, columns=columns)
    mask, ids = _mask_of(a, b, exclude, only)
    if runs_reference("similarity_lse", a):
        return reference.similarity_lse(a, b, scale, exclude, only, normalize, columns)
    # In float64, so that the kernels find the scale as it was.
    temperature = scale.double().reciprocal() if isinstance(scale, Tensor) else 1 / scale
    symmetric = b is a
    other = (None, (ids[0], None)) if symmetric else (b, ids)
    lse, column_lse, _ = calls.similarity_lse(
        a, other[0], mask, temperature, other[1], (normalize, normalize), columns and not symmetric
    )
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    lse = lse.to(dtype)
    return (lse, lse if symmetric else column_lse.to(dtype)) if columns else lse


def _mask_of(a: Tensor, b: Tensor, exclude: Any, only: Any) -> tuple[int, Ids]:
    """(mask, ids) of the arguments of `similarity_lse`, checked."""
    if exclude is not None and only is not None:
        raise ValueError("only: expected None where exclude is given")
    if exclude is None and only is None:
        return ALL, (None, None)
    if isinstance(exclude, str):
        checks.choice("exclude", exclude, ("self",))
        return NOT_SELF, (None, None)
    name = "exclude" if only is None else "only"
    return (IDS_DIFFER if only is None else IDS_EQUAL), pair_of_ids(name, exclude if only is None else only, a, b)


def pair_of_ids(name: str, ids: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(ids, (tuple, list)) or len(ids) != 2:
        raise TypeError(f"{name}: expected a pair of Tensors, the ids of both sides, got {type(ids).__name__}")
    checks.ids(f"{name}[0]", ids[0], a.shape[:1], "the rows", a)
    checks.ids(f"{name}[1]", ids[1], b.shape[:1], "the other rows", b)
    if b is a and ids[0] is not ids[1]:
        raise ValueError(f"{name}: expected the same Tensor twice for rows with each other, got two")
    return ids[0].long(), ids[1].long()
