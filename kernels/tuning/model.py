"""What a tile costs, by a model: clocks of each unit of a multiprocessor, for choosing tiles where no GPU is at hand.

It is a model, no measurement. The units work side by side where at least two programs share a multiprocessor,
one after the other where one is alone. Peaks are the vendors' (dense, boost clock); 40 bytes of L2 a clock is
a round number for both chips. What it leaves out: latencies, bank conflicts, the tails of loops, launches.
"""

from __future__ import annotations

from typing import NamedTuple

from .table import Tile


class Device(NamedTuple):
    """A multiprocessor's rates, a clock: FLOP of the matrix units by kind, exponentials, float32 operations, bytes."""

    processors: int
    gigahertz: float
    flops: dict[str, int]
    exponentials: int
    operations: int
    bytes: int


A100 = Device(108, 1.41, {"half": 2048, "tf32": 1024, "ieee": 128, "float64": 128}, 16, 64, 40)
H100 = Device(132, 1.83, {"half": 4096, "tf32": 2048, "ieee": 256, "float64": 256}, 16, 128, 40)
# The other architectures are chosen for as the nearer of the two.
DEVICES = {"sm_80": A100, "sm_90": H100, "sm_100": H100, "sm_120": A100, "gfx942": H100}

BYTES = {"half": 2, "tf32": 4, "ieee": 4, "float64": 8}
# Of each similarity: products of D terms (a weighted sum is one more), exponentials, and float32 operations
# (scaling, the exponent's argument, sums or maxima, weights and their rounding).
WORK = {"symmetric_tiles": (1, 1, 5), "online_softmax": (2, 1, 8), "weighted_rows": (2, 1, 6)}
# A mask, comparisons and selections; only tiles on a diagonal or an edge have one.
MASK_OPERATIONS = 9


class Cost(NamedTuple):
    """Clocks of one tile, by unit."""

    products: float
    exponentials: float
    operations: float
    bytes: float

    def clocks(self, programs: int) -> float:
        """programs: on a multiprocessor at once."""
        return max(self) if programs >= 2 else self.products + max(self[1:])


def cost(kernel: str, tile: Tile, width: int, kind: str, device: Device, masked: float = 0.0) -> Cost:
    """masked: the share of tiles that have a mask."""
    elements = tile.rows * tile.columns
    products, exponentials, operations = WORK[kernel]
    # The walking kernels keep their rows; symmetric_tiles reads both sides of every tile.
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
    """The time for so many similarities on the whole device, by the model."""
    tiles = similarities / (tile.rows * tile.columns)
    clocks = cost(kernel, tile, width, kind, device).clocks(programs)
    return tiles * clocks / device.processors / (device.gigahertz * 1e9)
