"""Which pairs of rows count."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .constants import ALL, IDS_DIFFER, IDS_EQUAL_NOT_SELF, NOT_SELF, NOT_SELF_NOR_PARTNER
from .tile import load_vector


class Mask(NamedTuple):
    """The arguments of every tile kernel that say which pairs (row, column) count.

    code: of constants.py. half: the distance of a row from its partner. ids: int64 of rows and columns, where the code
    has ids.
    """

    code: int
    half: int = 0
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None

    @property
    def arguments(self) -> tuple[int, Tensor | None, Tensor | None]:
        return self.half, self.row_ids, self.column_ids

    def transposed(self) -> Mask:
        return self._replace(row_ids=self.column_ids, column_ids=self.row_ids)


@triton.jit
def crosses(row, column, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds a pair with column - row == offset."""
    away = column - row - offset
    return (away < BLOCK_M) & (away > -BLOCK_N)


@triton.jit
def needs_mask(
    row, rows, column, columns, half, MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Whether a tile has pairs to leave out: few do, and masks cost as much as products."""
    needed = (column + BLOCK_N > columns) | (row + BLOCK_M > rows)
    if MASK >= IDS_DIFFER and MASK <= IDS_EQUAL_NOT_SELF:
        needed |= True
    elif MASK != ALL:
        needed |= crosses(row, column, 0, BLOCK_M, BLOCK_N)
    if MASK == NOT_SELF_NOR_PARTNER:
        needed |= crosses(row, column, half, BLOCK_M, BLOCK_N) | crosses(row, column, -half, BLOCK_M, BLOCK_N)
    return needed


@triton.jit
def kept(
    row, rows, column, columns, half, row_ids, column_ids,
    MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The pairs of a tile that count, inside the matrix."""
    i = (row + tl.arange(0, BLOCK_M))[:, None]
    k = (column + tl.arange(0, BLOCK_N))[None, :]
    keep = (i < rows) & (k < columns)
    if MASK == NOT_SELF or MASK >= IDS_EQUAL_NOT_SELF:
        keep &= i != k
    if MASK == NOT_SELF_NOR_PARTNER:
        keep &= (k - i != half) & (i - k != half)
    if MASK >= IDS_DIFFER and MASK <= IDS_EQUAL_NOT_SELF:
        of_rows = load_vector(row_ids, row, rows, BLOCK_M)[:, None]
        of_columns = load_vector(column_ids, column, columns, BLOCK_N)[None, :]
        keep &= (of_rows != of_columns) if MASK == IDS_DIFFER else (of_rows == of_columns)
    return keep
