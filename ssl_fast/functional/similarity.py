"""The log-sum-exp of which the losses are made, as a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.scalars import on_device
from ..operators import calls
from ..operators.codes import ALL, IDS_DIFFER, IDS_EQUAL, NOT_SELF
from ._dispatch import runs_reference

if TYPE_CHECKING:
    from ..annotations import Ids, Scalar

    Exclude = str | tuple[Tensor, Tensor] | None
    Only = tuple[Tensor, Tensor] | None


@overload
def similarity_lse(
    a: Tensor, b: Tensor, scale: Scalar = ..., *, normalize: bool = ..., exclude: Exclude = ..., only: Only = ...,
    columns: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def similarity_lse(
    a: Tensor, b: Tensor, scale: Scalar = ..., *, normalize: bool = ..., exclude: Exclude = ..., only: Only = ...,
    columns: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def similarity_lse(
    a: Tensor, b: Tensor, scale: Scalar = ..., *, normalize: bool = ..., exclude: Exclude = ..., only: Only = ...,
    columns: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def similarity_lse(
    a: Tensor,
    b: Tensor,
    scale: Scalar = 10.0,
    *,
    normalize: bool = True,
    exclude: Exclude = None,
    only: Only = None,
    columns: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What all these losses are made of: lse_i = log sum_k exp(scale <u_i, v_k>) over the pairs that count.

    Args:
        a: (N, D) embeddings.
        b: (M, D) embeddings; where b is a itself, half the products are computed.
        scale: a number of size 1e-8 to 1e8, or a 0-D tensor; a, b and scale get their gradient.
        normalize: whether the rows are normalised here; False takes them as they are.
        exclude: None; "self", k = i does not count; or (ids of a (N,), ids of b (M,)), equal ids do not count.
        only: None or (ids of a, ids of b): only equal ids count, and not k = i where b is a; then both ids are the
            same tensor.
        columns: whether the sums over i, of each column, are returned too.

    Returns:
        (N,) log-sum-exps, -Inf where nothing counts; with columns ((N,), (M,)).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> x = torch.randn(256, 128)
        >>> lse = functional.similarity_lse(x, x, 10.0, exclude="self")
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
        options: dict[str, Any] = {"normalize": normalize, "exclude": exclude, "only": only, "columns": columns}
        result: Tensor | tuple[Tensor, Tensor] = reference.similarity_lse(a, b, scale, **options)
        return result
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    if columns and b is not a:
        lse, column_lse, _ = calls.similarity_lse_of_both(a, b, mask, scale, ids, (normalize, normalize))
        return lse.to(dtype), column_lse.to(dtype)
    lse = calls.similarity_lse(a, b, mask, scale, ids, (normalize, normalize))[0].to(dtype)
    return (lse, lse) if columns else lse


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
    """(ids of a (N,), ids of b (M,)) in int64, checked."""
    if not isinstance(ids, (tuple, list)) or len(ids) != 2:
        raise TypeError(f"{name}: expected a pair of Tensors, the ids of both sides, got {type(ids).__name__}")
    checks.ids(f"{name}[0]", ids[0], a.shape[:1], "the rows", a)
    checks.ids(f"{name}[1]", ids[1], b.shape[:1], "the other rows", b)
    if b is a and ids[0] is not ids[1]:
        raise ValueError(f"{name}: expected the same Tensor twice for rows with each other, got two")
    return ids[0].long(), ids[1].long()
