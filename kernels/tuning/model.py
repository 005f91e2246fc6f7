"""A model of what a tile costs: clocks of each unit of a multiprocessor, for choosing tiles where no GPU is at hand.

It is a model and no measurement. Units are taken to work at the same time where two programs or more share a
multiprocessor, and one after the other where a program is alone. Peak rates are the vendors' (dense, boost clock), and
40 bytes of L2 a clock is a round number for both chips. Latencies, bank conflicts, the tails of loops and launches are
left out.
"""

from __future__ import annotations

from typing import NamedTuple

from .table import Tile


class Device(NamedTuple):
    """A device's multiprocessors, their clock, and what one of them does in a clock."""

    processors: int
    gigahertz: float
    flops: dict[str, int]  # of the matrix units, by kind of product
    exponentials: int
    operations: int  # in float32
    bytes: int  # read from L2


A100 = Device(108, 1.41, {"half": 2048, "tf32": 1024, "ieee": 128, "float64": 128}, 16, 64, 40)
H100 = Device(132, 1.83, {"half": 4096, "tf32": 2048, "ieee": 256, "float64": 256}, 16, 128, 40)
# For each architecture the nearer of the two.
DEVICES = {"sm_80": A100, "sm_90": H100, "sm_100": H100, "sm_120": A100, "gfx942": H100}

BYTES = {"half": 2, "tf32": 4, "ieee": 4, "float64": 8}
# What a kernel does for each similarity: products of D terms (a weighted sum is a second one), exponentials, and
# float32 operations (scaling, the exponent's argument, sums or maxima, weights and their rounding).
WORK = {"symmetric_tiles": (1, 1, 5), "online_softmax": (2, 1, 8), "weighted_rows": (2, 1, 6)}
# What a mask adds, in comparisons and selections. Only tiles on a diagonal or an edge have one.
MASK_OPERATIONS = 9


class Cost(NamedTuple):
    """The clocks that each unit takes for one tile."""

    products: float
    exponentials: float
    operations: float
    bytes: float

    def clocks(self, programs: int) -> float:
        """The clocks of the tile with so many programs on a multiprocessor at once."""
        return max(self) if programs >= 2 else self.products + max(self[1:])


def cost(kernel: str, tile: Tile, width: int, kind: str, device: Device, masked: float = 0.0) -> Cost:
    """The cost of a tile of rows of this width and kind. masked: the share of tiles that have a mask."""
    elements = tile.rows * tile.columns
    products, exponentials, operations = WORK[kernel]
    # The other kernels keep their rows while they walk; symmetric_tiles reads both sides of every tile.
    rows_read = tile.columns + (tile.rows if kernel == "symmetric_tiles" else 0)
    return Cost(
        products * 2 * elements * width / device.flops[kind],
        exponentials * elements / device.exponentials,
        (operations + masked * MASK_OPERATIONS) * elements / device.operations,
        rows_read * width * BYTES[kind] / device.bytes,
    )


def seconds(
    kernel: str, tile: Tile, width: int, kind: str, device: Device, similarities: float, programs: int
) -> float:
    """The time that the whole device takes for so many similarities."""
    tiles = similarities / (tile.rows * tile.columns)
    clocks = cost(kernel, tile, width, kind, device).clocks(programs)
    return tiles * clocks / device.processors / (device.gigahertz * 1e9)
