"""Tile shapes by architecture, kind of product and width, and how work is cut: fixed tables, no search at run time.

`tiles.json` holds the table, a row for each architecture. `python -m bench.tune` writes the row of the GPU that it runs
on, and tests/kernels/test_ahead_of_time.py holds every entry to the registers and the shared memory of its device.
Releases of Triton use registers differently: "triton" lists the entries that a release needs in place of the row's, so
that no kernel spills. Kernels share tiles: NT-Xent's positives' dots take the tile of symmetric_tiles, and a walk of
both views its depth, so that an entry of one kernel is to be tested with the forms of all.

A GPU takes its own row where the table has one (`choice`). Else it takes the first row of its family (FAMILIES) that
fits the shared memory of its blocks, and the family's last row where none does. What a row needs is not measured: it
counts as all the shared memory of a block of the GPU for which it was made (SHARED_LIMIT). The choice is thus the same
for every release of Triton, as long as the tests hold each row to that limit.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
import triton

# The widest rows whose sums stay in a program's registers.
FUSED_WIDTH = 256
# Where rows are wider, so many products are stored at a time: 64 MB in float32.
CHUNK_ELEMENTS = 1 << 24
# a * b + c may be rounded once. This is the default, which some releases of Triton warn of unless it is given.
COMMON = {"enable_fp_fusion": True}
LAUNCH = {"num_warps": 4, **COMMON}
# For kernels that store sums of products across lanes. The compiler may fuse a product and an addition in one lane and
# not in another. The lanes would then have sums that differ in the last digit, and that of the lane that stores last
# would be kept.
UNFUSED = {**LAUNCH, "enable_fp_fusion": False}
TABLE = Path(__file__).with_name("tiles.json")
# How many bytes of shared memory a block may have at most (CUDA C++ programming guide; MI300's ISA).
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10, "gfx942": 64 << 10}
# Rows for the GPUs of a major version, the best first, and for GPUs of any other. The row of sm_120 needs the least
# shared memory.
FAMILIES = {
    "sm_8": ("sm_80", "sm_120"),
    "sm_9": ("sm_90", "sm_120"),
    "sm_10": ("sm_100", "sm_120"),
    "sm_": ("sm_120",),
    "gfx": ("gfx942",),
}


class Tile(NamedTuple):
    """A tile of rows x columns similarities, summed along the width in steps of depth, and how it is computed."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages, **COMMON}

    def narrower(self) -> Tile:
        """A tile that leaves room in registers for the ids of rows and columns."""
        return self._replace(columns=max(16, self.columns // 2))


WEIGHTS_TILE = Tile(32, 128, 0, 4, 1)


def padded_width(dim: int) -> int:
    """The width of prepared rows: a power of two where programs hold whole rows, else a multiple of the depth 64."""
    return max(16, triton.next_power_of_2(dim)) if dim <= FUSED_WIDTH else (dim + 63) // 64 * 64


def kind(dtype: torch.dtype, source: torch.dtype, device: torch.device) -> str:
    """The table's name for products in `dtype` of queries that came in `source`: half, tf32, ieee or float64.

    Products in float32 follow torch.set_float32_matmul_precision. Queries of a half type beside a float32 queue lose
    nothing in TF32 and always take it. Of AMD's GPUs only MI300 has TF32.
    """
    if dtype != torch.float32:
        return "float64" if dtype == torch.float64 else "half"
    if architecture(device).startswith("gfx") and architecture(device) != "gfx942":
        return "ieee"
    # torch.get_float32_matmul_precision() raises once the newer fp32_precision was set.
    setting = torch.backends.cuda.matmul.fp32_precision
    tf32 = (torch.backends.fp32_precision if setting == "none" else setting) == "tf32"
    return "tf32" if tf32 or source in (torch.float16, torch.bfloat16) else "ieee"


def precision(of_kind: str) -> str:
    """The input_precision of tl.dot for products of this kind."""
    return "tf32" if of_kind == "tf32" else "ieee"


@functools.cache
def architecture(device: torch.device) -> str:
    """The table's name for a device; "interpreter" for CPU tensors."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]  # "gfx90a:sramecc+:xnack-"
    # With CUDA gcnArchName exists too, and is the marketing name.
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def shared_limit(device: torch.device) -> int:
    """How many bytes of shared memory a block on this device may have at most."""
    if device.type == "cpu":  # interpreted
        return 0
    properties = torch.cuda.get_device_properties(device)
    # On ROCm the opt-in limit may be 0.
    return max(properties.shared_memory_per_block, properties.shared_memory_per_block_optin)


def as_written() -> tuple[dict, dict]:
    """The file's rows by architecture, and the entries that releases of Triton need in their place, by release."""
    found = json.loads(TABLE.read_text())
    return found, found.pop("triton")


def release(releases: dict) -> str:
    """The one of `releases` that is installed, or else the last before it, or else the first of all."""
    installed = _numbers(triton.__version__)
    return max(
        (name for name in releases if _numbers(name) <= installed), key=_numbers, default=min(releases, key=_numbers)
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@functools.cache
def rows() -> dict:
    """The rows for the installed Triton, as a dictionary by architecture, kind, kernel and width."""
    found, releases = as_written()
    for name, kinds in releases[release(releases)].items():
        for of_kind, kernels in kinds.items():
            for kernel, widths in kernels.items():
                found[name][of_kind][kernel].update(widths)
    return found


class Choice(NamedTuple):
    """A row of the table, and the reason why it is not the GPU's own row; empty where it is."""

    row: str
    reason: str = ""


@functools.cache
def choice(name: str, shared: int) -> Choice:
    """The row for a GPU of the architecture `name` whose blocks have `shared` bytes of shared memory."""
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
    """The tile of a kernel in the row `name`."""
    widths = rows()[name][of_kind][kernel]
    # The entry of the same or the next larger width is taken; the widest entry serves all wider rows.
    fitting = [key for key in sorted(map(int, widths)) if key >= width] or [max(map(int, widths))]
    tile = Tile(*widths[str(fitting[0])])
    # Steps along wider rows are pipelined, so that the shared memory holds several of them.
    return tile._replace(depth=min(tile.depth, width & -width, FUSED_WIDTH if width <= FUSED_WIDTH else 64))


def tile(kernel: str, device: torch.device, of_kind: str, width: int) -> Tile:
    """The tile of a kernel (symmetric_tiles, online_softmax or weighted_rows) for rows of this kind and width."""
    return row_tile(kernel, choice(architecture(device), shared_limit(device)).row, of_kind, width)


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors the device has."""
    if device.type == "cpu":  # interpreted, or compiled for a device that is not here
        return 4 if architecture(device) == "interpreter" else 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def elements(device: torch.device) -> int:
    """How many elements a program of the O(N D) kernels holds; more in the interpreter, which is slow."""
    return 1 << 15 if architecture(device) == "interpreter" else 2048


def slots(device: torch.device) -> int:
    """How many sums of `symmetric_tiles` are kept for a row at most: more could take more memory than the rows."""
    return 4 if architecture(device) == "interpreter" else 64


def pieces(device: torch.device, blocks: int, columns: int, tile_columns: int) -> tuple[int, int]:
    """(pieces, columns of a piece) of a walk: several pieces where `blocks` of rows are too few to fill the device.

    The shapes and the device decide alone, so that the order of the sums is the same in every run.
    """
    wanted = max(1, 2 * processors(device) // blocks)
    # A piece has at least four tiles, since its sums are stored and read once more.
    tiles = triton.cdiv(columns, tile_columns)
    count = max(1, min(wanted, tiles // 4))
    length = triton.cdiv(tiles, count) * tile_columns
    return triton.cdiv(columns, length), length
