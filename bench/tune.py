"""Writes kernels/tuning/tiles.json: `python -m bench.tune` measures on the GPU at hand and writes its entries.

`python -m bench.tune --model sm_90 ...` chooses without a GPU: the candidates in the order of kernels/tuning/model.py,
the first that compiles without spilled registers, within the device's shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import nullcontext
from functools import partial

import torch
import triton

from ssl_fast.kernels import info_nce, nt_xent
from ssl_fast.kernels.tuning import ahead_of_time, model, table
from ssl_fast.kernels.tuning.table import Tile

KINDS = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "float64": torch.float64}
WIDTHS = (64, 128, 256)
SHAPES = [
    (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 4, 2), (64, 128, 8, 2),
    (64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 8, 3), (64, 64, 8, 2), (64, 64, 8, 1), (64, 32, 4, 2), (64, 32, 8, 2),
    (64, 32, 8, 1), (32, 64, 4, 2), (32, 32, 4, 2), (32, 32, 8, 2), (32, 32, 4, 1), (32, 32, 8, 1), (32, 16, 4, 2),
    (32, 16, 4, 1), (32, 16, 8, 1), (16, 16, 4, 1),
]  # fmt: skip
KERNELS = {
    "symmetric_tiles": "_symmetric_tiles_kernel",
    "online_softmax": "_online_softmax_kernel",
    "weighted_rows": "_weighted_rows_kernel",
}
DEPTHS = {"half": [64, 32], "tf32": [32, 64], "ieee": [32, 16], "float64": [32, 16]}  # depths of symmetric_tiles


def candidates(kernel: str, kind: str, width: int) -> list[Tile]:
    if kernel == "symmetric_tiles":
        return [
            Tile(rows, columns, depth, warps, stages)
            for rows, columns, warps, stages in SHAPES
            for depth in DEPTHS[kind]
            if rows == columns and depth <= width
        ]
    return [Tile(rows, columns, width, warps, stages) for rows, columns, warps, stages in SHAPES]


def set_kind(kind: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"


def calls(kernel: str, kind: str, width: int, count: int = 1024, device: str = "cpu"):
    """Functions that launch `kernel` in each of its common forms."""
    dtype = KINDS[kind]
    wide = torch.float64 if kind == "float64" else torch.float32
    z, keys = (torch.randn(n, width, device=device).to(dtype) for n in (count, 4 * count))
    one = torch.ones((), dtype=wide, device=device)
    sums = torch.zeros(3, 2 * count, dtype=wide, device=device)
    learnt = torch.full((), 10.0, dtype=torch.float64, device=device)  # both forms run, and one returns at once
    if kernel == "symmetric_tiles":
        return [partial(nt_xent.nt_xent, z, z, 1.0, learnt, 1, False)] + [
            partial(nt_xent.nt_xent, z, z, 10.0, None, 1, stats) for stats in (False, True)
        ]
    if kernel == "online_softmax":
        queue = [partial(info_nce.info_nce, z, z, keys, False, 10.0, None, 1, stats, True) for stats in (False, True)]
        return [
            *queue,
            partial(nt_xent.nt_xent, z, z, 1.0, learnt, 1, False),
            lambda: info_nce.info_nce(z, z, None, False, 10.0, None, 1, False, True),
        ]
    return [
        lambda: nt_xent.nt_xent_backward(one, z, z, 10.0, None, 1, sums),
        lambda: nt_xent.nt_xent_backward(one, z, z, 1.0, learnt, 1, sums),
        lambda: info_nce.info_nce_backward(
            one, z, z, keys, False, True, 10.0, None, 1, sums[:, :count].contiguous(),
            torch.zeros(count, width, dtype=wide, device=device), True,
        ),
    ]  # fmt: skip


def paired_call(dtype: torch.dtype, width: int, device: str = "cpu"):
    """A function that launches both kernels of negatives of each query's own."""
    z, keys = (torch.randn(*shape, width, device=device).to(dtype) for shape in ((64,), (64, 256)))
    one, sums = torch.ones((), device=device), torch.zeros(3, 64, device=device)

    def call():
        means = info_nce.info_nce(z, z, keys, True, 10.0, None, 1, False, True)[3]
        info_nce.info_nce_backward(one, z, z, keys, False, True, 10.0, None, 1, sums, means, True)

    return call


class _Trial:
    """One tile in place of the table's, while it is tried."""

    def __init__(self, kernel: str, tile: Tile):
        self.kernel, self.tile, self.before = kernel, tile, table.row_tile

    def __enter__(self):
        def tried(kernel, name, kind, width):
            return self.tile if kernel == self.kernel else self.before(kernel, name, kind, width)

        table.row_tile = tried

    def __exit__(self, *_):
        table.row_tile = self.before


def compiled(
    kernel: str, kind: str, width: int, tile: Tile | None, name: str, forms: slice = slice(None)
) -> list[ahead_of_time.Compiled]:
    """The common forms of a kernel, or some of them, for a device, with this tile or that of the table."""
    set_kind(kind)
    found = []
    # The positives' dots are computed with the tile of the kernel that they are compared in.
    wanted = {KERNELS[kernel]} if kernel == "weighted_rows" else {KERNELS[kernel], "_pair_dots_kernel"}
    with _Trial(kernel, tile) if tile else nullcontext():
        for call in calls(kernel, kind, width)[forms]:
            launched = [launch for launch in ahead_of_time.launches(call, name) if launch.kernel.fn.__name__ in wanted]
            found += [ahead_of_time.compiled(launch, name) for launch in launched]
    return found


def fits(forms: list[ahead_of_time.Compiled], name: str) -> bool:
    return all(form.local_bytes == 0 and form.shared_bytes <= ahead_of_time.SHARED_LIMIT[name] for form in forms)


def by_model(kernel: str, kind: str, width: int, name: str) -> Tile:
    def seconds(tile: Tile, programs: int) -> float:
        return model.seconds(kernel, tile, width, kind, model.DEVICES[name], 1e6, programs)

    fitting: dict[Tile, float] = {}
    for tile in sorted(candidates(kernel, kind, width), key=lambda tile: seconds(tile, 2)):
        # What is left would not be faster with two programs on a multiprocessor than the best is as compiled.
        if len(fitting) == 3 or (fitting and seconds(tile, 2) >= min(fitting.values())):
            break
        try:
            forms = compiled(kernel, kind, width, tile, name)
        except Exception as error:  # a compiler's limit: the next candidate
            print(f"{name} {kind} {kernel} {width} {tile}: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        if fits(forms, name):
            fitting[tile] = seconds(tile, min(form.programs(tile.warps, name) for form in forms))
    if not fitting:
        raise SystemExit(f"no tile of {kernel} for {kind}, width {width} fits {name}")
    return min(fitting, key=fitting.get)


def by_time(kernel: str, kind: str, width: int, name: str) -> Tile:
    """The fastest on the GPU at hand, of the medians of several forms together."""
    set_kind(kind)
    best, best_time = None, float("inf")
    for tile in candidates(kernel, kind, width):
        with _Trial(kernel, tile):
            try:
                times = [
                    triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median")
                    for call in calls(kernel, kind, width, 4096, "cuda")
                ]
            except (triton.runtime.errors.OutOfResources, RuntimeError) as error:
                print(f"{kind} {kernel} {width} {tile}: {str(error).splitlines()[0][:100]}", flush=True)
                continue
        print(f"{kind} {kernel} {width} {tile}: {sum(times):.4f} ms", flush=True)
        if sum(times) < best_time:
            best, best_time = tile, sum(times)
    if best is None:
        raise SystemExit(f"no tile of {kernel} for {kind}, width {width} runs")
    return best


def text(value: dict, indent: str = "") -> str:
    """JSON with the widths of a kernel on one line."""
    if not value or any(isinstance(inner, list) for inner in value.values()):
        return json.dumps(value)
    inner = indent + " "
    return "{\n" + ",\n".join(f'{inner}"{key}": {text(value[key], inner)}' for key in value) + f"\n{indent}}}"


def add(name: str, shared: int, kind: str, entry: dict) -> None:
    """Writes one kind of a row. A new row begins as a copy of the one that served so far: it is whole at any time."""
    row = table.rows()[table.choice(name, shared).row]
    rows, releases = table.as_written()
    rows[name] = {**rows.get(name, row), kind: entry}
    releases[table.release(releases)].get(name, {}).pop(kind, None)
    part = table.TABLE.with_suffix(".part")
    part.write_text(text({**rows, "triton": releases}) + "\n")
    os.replace(part, table.TABLE)
    for function in (table.rows, table.choice, table.row_tile):
        function.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument("--model", nargs="+", metavar="ARCH", help="choose for these by the model, without a GPU")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args()
    if not asked.model and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --model chooses without one")
    if asked.model:
        choose, limits = by_model, {name: ahead_of_time.SHARED_LIMIT[name] for name in asked.model}
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        choose, limits = by_time, {table.architecture(device): table.shared_limit(device)}
    for name, shared in limits.items():
        for kind in asked.kinds:
            entry = {
                kernel: {str(width): list(choose(kernel, kind, width, name)) for width in WIDTHS} for kernel in KERNELS
            }
            add(name, shared, kind, entry)
            print(name, kind, json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
