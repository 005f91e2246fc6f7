"""Which pairs of a row i and a column k count. The codes are in constants.py."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .constants import ALL, IDS_DIFFER, IDS_EQUAL_NOT_SELF, NOT_SELF, NOT_SELF_NOR_PARTNER
from .tile import load_vector


class Mask(NamedTuple):
    """What the tile kernels are told of the pairs that count.

    half: how far a row is from its partner, for NOT_SELF_NOR_PARTNER. The ids are int64, for the codes that compare
    them.
    """

    code: int
    half: int = 0
    row_ids: Tensor | None = None  # (rows,)
    column_ids: Tensor | None = None  # (columns,)

    @property
    def arguments(self) -> tuple[int, Tensor | None, Tensor | None]:
        """The arguments `half, row_ids, column_ids` of the kernels, which get the code as the constant MASK."""
        return self.half, self.row_ids, self.column_ids

    def transposed(self) -> Mask:
        """The same pairs where rows and columns are exchanged."""
        return self._replace(row_ids=self.column_ids, column_ids=self.row_ids)


@triton.jit
def crosses(row, column, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the tile from (row, column) on holds a pair (i, k) with k - i == offset."""
    away = column - row - offset
    return (away < BLOCK_M) & (away > -BLOCK_N)


@triton.jit
def needs_mask(
    row, rows, column, columns, half, MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Whether the tile from (row, column) on holds a pair that does not count.

    Few tiles do, and applying a mask costs as much as the products.
    """
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
    row, rows, column, columns, half,
    row_ids, column_ids,  # (rows,), (columns,), or None
    MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Which pairs of the tile from (row, column) on count and lie inside the matrix: (BLOCK_M, BLOCK_N) booleans."""
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
