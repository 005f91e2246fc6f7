"""Which pairs of rows count."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pairs(NamedTuple):
    """The arguments of every tile kernel that say which pairs (row, column) count.

    mask: of tiles.py. half: the distance of a row from its partner. ids: int64 of rows and columns, where the mask
    has ids.
    """

    mask: int
    half: int = 0
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None

    @property
    def arguments(self) -> tuple[int, Tensor | None, Tensor | None]:
        return self.half, self.row_ids, self.column_ids

    def transposed(self) -> Pairs:
        return self._replace(row_ids=self.column_ids, column_ids=self.row_ids)
