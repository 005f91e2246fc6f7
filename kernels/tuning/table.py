"""Tile shapes by architecture, dtype and width, and how work is cut: fixed tables, no search when a kernel runs.

`tiles.json` holds the table, one row an architecture. `python -m bench.tune` writes the row of the GPU that it runs on;
tests/kernels/test_ahead_of_time.py holds every entry to its device's registers and shared memory. Releases of Triton
spend registers differently: "triton" lists the entries that a release needs in place of the row's, so that none spills.

Which row a GPU gets (`choice`): its own where the table has one. Else the first of its family's (FAMILIES) that fits
the shared memory of its blocks, and where none does the family's last. What a row needs is not measured: it counts as
all that a block of the GPU it was made for may have (SHARED_LIMIT). So the choice holds whatever a release of Triton
makes of the tiles, as long as the tests hold each row to that limit.
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
# For sums of products across lanes whose result is stored. The compiler may fuse a product and an addition in one lane
# and not in another. Lanes would then differ in the last digit of what should be one sum, and the one that stores last
# would win.
UNFUSED = {**LAUNCH, "enable_fp_fusion": False}
TABLE = Path(__file__).with_name("tiles.json")
# Most bytes of shared memory that a block may have (CUDA C++ programming guide, compute capabilities; MI300 ISA).
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10, "gfx942": 64 << 10}
# Rows for the GPUs of a major version, best first, and for those of any other. sm_120's need the least shared memory.
FAMILIES = {
    "sm_8": ("sm_80", "sm_120"),
    "sm_9": ("sm_90", "sm_120"),
    "sm_10": ("sm_100", "sm_120"),
    "sm_": ("sm_120",),
    "gfx": ("gfx942",),
}


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


def kind(dtype: torch.dtype, source: torch.dtype, device: torch.device) -> str:
    """The table's name for products in `dtype` of queries that came in `source`.

    float32 follows torch.set_float32_matmul_precision; half types in float32, beside a queue of float32, lose
    nothing in TF32. Of AMD's GPUs only MI300 has TF32: Triton compiles it for no other.
    """
    if dtype != torch.float32:
        return "float64" if dtype == torch.float64 else "half"
    if architecture(device).startswith("gfx") and architecture(device) != "gfx942":
        return "ieee"
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
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]  # "gfx90a:sramecc+:xnack-"
    # A torch for CUDA has a gcnArchName as well, the marketing name.
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def shared_limit(device: torch.device) -> int:
    """Most bytes of shared memory that a block on this device may have."""
    if device.type == "cpu":  # interpreted
        return 0
    properties = torch.cuda.get_device_properties(device)
    # On ROCm the opt-in limit may be 0.
    return max(properties.shared_memory_per_block, properties.shared_memory_per_block_optin)


def as_written() -> tuple[dict, dict]:
    """The rows by architecture, and by release of Triton the entries that differ there; as they are in the file."""
    rows = json.loads(TABLE.read_text())
    return rows, rows.pop("triton")


def release(releases: dict) -> str:
    """That of `releases` which the installed Triton is, or else the last before it, or else the first."""
    installed = _numbers(triton.__version__)
    return max(
        (name for name in releases if _numbers(name) <= installed), key=_numbers, default=min(releases, key=_numbers)
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@functools.cache
def rows() -> dict:
    """By architecture, kind, kernel and width: the rows for the installed Triton."""
    rows, releases = as_written()
    for name, kinds in releases[release(releases)].items():
        for of_kind, kernels in kinds.items():
            for kernel, widths in kernels.items():
                rows[name][of_kind][kernel].update(widths)
    return rows


class Choice(NamedTuple):
    """A row of the table, and why it is not the GPU's own; empty where it is."""

    row: str
    reason: str = ""


@functools.cache
def choice(name: str, shared: int) -> Choice:
    """The row for GPUs of the architecture `name`, whose blocks have `shared` bytes of shared memory."""
    if name in rows():
        return Choice(name)
    family = FAMILIES.get(name[:-1]) or FAMILIES["gfx" if name.startswith("gfx") else "sm_"]
    reason = f"the table has no row for {name}"
    for row in family:
        if SHARED_LIMIT[row] <= shared:
            return Choice(row, reason)
        reason += f", {row}'s may need {SHARED_LIMIT[row] >> 10} KiB of shared memory where a block has {shared >> 10}"
    return Choice(family[-1], reason)


@functools.cache
def row_tile(kernel: str, name: str, of_kind: str, width: int) -> Tile:
    widths = rows()[name][of_kind][kernel]
    # The entry of the next larger width; the largest serves all beyond.
    fitting = [key for key in sorted(map(int, widths)) if key >= width] or [max(map(int, widths))]
    tile = Tile(*widths[str(fitting[0])])
    # Steps along wider rows are pipelined: several of them lie in shared memory.
    return tile._replace(depth=min(tile.depth, width & -width, FUSED_WIDTH if width <= FUSED_WIDTH else 64))


def tile(kernel: str, device: torch.device, of_kind: str, width: int) -> Tile:
    """The tile of `kernel`, "symmetric_tiles", "online_softmax" or "weighted_rows", for rows of this kind and width."""
    return row_tile(kernel, choice(architecture(device), shared_limit(device)).row, of_kind, width)


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
