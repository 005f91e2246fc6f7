"""Tile shapes by architecture, dtype and width, and how work is cut: fixed tables, no search when a kernel runs.

`tiles.json` holds the table: `python -m bench.tune` writes the entries of the GPU that it runs on,
tests/kernels/test_aot.py holds every entry to its device's registers and shared memory.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
import triton

# Widest rows whose sums stay in a program's registers.
FUSED_WIDTH = 256
# Elements of products that are stored at a time where rows are wider: 64 MB in float32.
CHUNK_ELEMENTS = 1 << 24
# Set so that no release of Triton warns of its default: a * b + c in one rounding.
COMMON = {"enable_fp_fusion": True}
LAUNCH = {"num_warps": 4, **COMMON}
TABLE = Path(__file__).with_name("tiles.json")


class Tile(NamedTuple):
    """rows x columns of similarities, summed along the width in steps of depth."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, **COMMON}

    def narrower(self) -> Tile:
        """With room in registers for the ids of rows and columns."""
        return self._replace(columns=max(16, self.columns // 2))


WEIGHTS_TILE = Tile(32, 128, 0, 4, 1)


def padded_width(dim: int) -> int:
    """Powers of two where programs hold whole rows, else whole steps of depth."""
    return max(16, triton.next_power_of_2(dim)) if dim <= FUSED_WIDTH else (dim + 63) // 64 * 64


def kind(dtype: torch.dtype, source: torch.dtype) -> str:
    """The table's name for products in `dtype` of queries that came in `source`.

    float32 follows torch.set_float32_matmul_precision; half types in float32, beside a queue of float32, lose
    nothing in TF32.
    """
    if dtype != torch.float32:
        return "float64" if dtype == torch.float64 else "half"
    # Not torch.get_float32_matmul_precision(), which raises after the newer fp32_precision was set.
    setting = torch.backends.cuda.matmul.fp32_precision
    tf32 = (torch.backends.fp32_precision if setting == "none" else setting) == "tf32"
    return "tf32" if tf32 or source in (torch.float16, torch.bfloat16) else "ieee"


def precision(of_kind: str) -> str:
    """tl.dot's input_precision."""
    return "tf32" if of_kind == "tf32" else "ieee"


@functools.cache
def architecture(device: torch.device) -> str:
    """The table's name for a device; "interpreter" for CPU tensors."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "gcnArchName", "").partition(":")[0] or f"sm_{properties.major}{properties.minor}"


@functools.cache
def table() -> dict:
    return json.loads(TABLE.read_text())


@functools.cache
def _tile(kernel: str, name: str, of_kind: str, width: int) -> Tile:
    entries = table()
    # An architecture without entries gets those of the oldest, which need the least shared memory.
    widths = entries.get(name, entries["sm_80"])[of_kind][kernel]
    # The entry of the next larger width; the largest serves all beyond.
    fitting = [key for key in sorted(map(int, widths)) if key >= width] or [max(map(int, widths))]
    tile = Tile(*widths[str(fitting[0])])
    # Steps along wider rows are pipelined: several of them lie in shared memory.
    return tile._replace(depth=min(tile.depth, width & -width, FUSED_WIDTH if width <= FUSED_WIDTH else 64))


def tile(kernel: str, device: torch.device, of_kind: str, width: int) -> Tile:
    """The tile of `kernel`, "exp_sums", "walk" or "attractions", for rows of this kind and width."""
    return _tile(kernel, architecture(device), of_kind, width)


@functools.cache
def processors(device: torch.device) -> int:
    if device.type == "cpu":  # interpreted, or compiled for a device that is not here
        return 4 if architecture(device) == "interpreter" else 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def elements(device: torch.device) -> int:
    """That a program of the O(N D) kernels holds. In the interpreter every operation takes microseconds."""
    return 1 << 15 if architecture(device) == "interpreter" else 2048


def slots(device: torch.device) -> int:
    """Most sums of nt_xent's blocks that are kept for a row: more would be more than O(N D)."""
    return 4 if architecture(device) == "interpreter" else 64


def pieces(device: torch.device, blocks: int, columns: int, tile_columns: int) -> tuple[int, int]:
    """Into how many pieces of how many columns a walk is cut, where blocks of rows are too few for the device.

    By the shapes and the device alone: the order of sums is the same in every run.
    """
    wanted = max(1, 2 * processors(device) // blocks)
    # At least four tiles each: a piece is stored and read once more.
    tiles = triton.cdiv(columns, tile_columns)
    count = max(1, min(wanted, tiles // 4))
    length = triton.cdiv(tiles, count) * tile_columns
    return triton.cdiv(columns, length), length
