"""`python -m bench grid`: every loss, by rows a side N and width D: how many times as long the fastest peer takes.

Forward + backward, float32. By default a small grid (8 minutes on 2 cores) at this processor's highest vector level;
--full is all of it, --levels measures each level in a process of its own, as SSL_FAST_SIMD is read once. Each cell's
losses are held to float64 before they are timed. Left out are cells in which plain PyTorch would store more than
--memory bytes, counted as four float32 matrices of logits and the inputs, each with its unit rows and the gradients of
both; and cells in which its products, three of 2 D a logit, would take longer than --longest seconds at the library's
sgemm.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import ssl_fast
from ssl_fast import functional

from . import composed, measure, peers, report
from .work import TEMPERATURE, Work, in_float64, steps, verified

ROWS, DIMS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192), (64, 128, 256, 384, 512, 768, 1024)
FEW_ROWS, FEW_DIMS = (32, 128, 512, 2048), (128, 512, 768)
PAIRED = 16  # negatives of each query
GOAL = 1.15


@dataclass(frozen=True)
class Case:
    """make: of rows a side and width. logits: how many plain PyTorch stores, of rows; inputs: rows of them a row."""

    make: composed.Make
    logits: Callable[[int], int]
    inputs: int = 2


def _nt_xent(rows: int, dim: int):
    losses = {"ssl_fast": lambda z1, z2: functional.nt_xent(z1, z2, TEMPERATURE)}
    losses |= peers.nt_xent_peers(2 * rows, TEMPERATURE, compiled=False)
    return [composed.x(rows, dim), composed.x(rows, dim)], losses


def _in_batch(rows: int, dim: int):
    losses = {"ssl_fast": lambda query, positive: functional.info_nce(query, positive, None, TEMPERATURE)}
    return [composed.x(rows, dim), composed.x(rows, dim)], losses | peers.in_batch_peers(TEMPERATURE)


def _given(mode: str) -> composed.Make:
    def make(rows: int, dim: int):
        losses = {"ssl_fast": lambda q, k, negatives: functional.info_nce(q, k, negatives, TEMPERATURE)}
        negatives = composed.x(rows, dim) if mode == "unpaired" else composed.x(rows, PAIRED, dim)
        inputs = [composed.x(rows, dim), composed.x(rows, dim), negatives]
        return inputs, losses | peers.given_negatives_peers(TEMPERATURE, mode)

    return make


def _queue(rows: int, dim: int):
    queue = ssl_fast.NegativeQueue(composed.BANK, dim, seed=0)
    losses = {
        "ssl_fast": lambda q, k, _: functional.info_nce(q, k, queue, TEMPERATURE),
        "eager": lambda q, k, bank: peers.eager_info_nce(q, k, bank, TEMPERATURE),
    }
    for name, loss in peers.info_nce_peers(queue.queue, TEMPERATURE, compiled=False).items():
        losses.setdefault(name, lambda q, k, _, loss=loss: loss(q, k))
    return [composed.x(rows, dim), composed.x(rows, dim), queue.queue], losses


def _views(name: str) -> composed.Make:
    return lambda rows, dim: composed.LOSSES[name].make(2 * rows, dim)


LOSSES = {
    "NT-Xent": Case(_nt_xent, lambda n: 4 * n**2),
    "InfoNCE": Case(_in_batch, lambda n: n**2),
    "InfoNCE, shared negatives": Case(_given("unpaired"), lambda n: n**2, 3),
    "InfoNCE, paired negatives": Case(_given("paired"), lambda n: n * PAIRED, 2 + PAIRED),
    "InfoNCE, queue": Case(_queue, lambda n: n * composed.BANK),
    "MoCo v3": Case(composed.LOSSES["MoCo v3"].make, lambda n: 2 * n**2, 4),
    "CLIP": Case(composed.LOSSES["CLIP"].make, lambda n: n**2),
    "SigLIP": Case(composed.LOSSES["SigLIP"].make, lambda n: n**2),
    "SupCon": Case(composed.LOSSES["SupCon"].make, lambda n: n**2, 1),
    "DCL": Case(_views("DCL"), lambda n: 4 * n**2),
    "hard negatives": Case(_views("hard negatives"), lambda n: 4 * n**2),
    "2 positives": Case(composed.LOSSES["2 positives"].make, lambda n: 2 * n**2, 3),
    "instances": Case(composed.LOSSES["instances"].make, lambda n: n * composed.BANK, 1),
}


def _left_out(case: Case, rows: int, dim: int, sgemm: float, options: argparse.Namespace) -> str:
    """Why the cell is not measured, or nothing."""
    stored = 16 * (case.logits(rows) + case.inputs * rows * dim)
    if stored > options.memory:
        return f"plain PyTorch would store {stored / 1e9:.2g} GB"
    seconds = 6 * case.logits(rows) * dim / sgemm
    return f"plain PyTorch's products would take {seconds:.2g} s" if seconds > options.longest else ""


def _with_compile(losses: dict[str, Callable], truth: torch.Tensor, inputs: list[torch.Tensor]) -> dict[str, Callable]:
    """The losses and plain PyTorch by torch.compile, for the thread count of now, where it can compile it whole."""
    compiled = {"compile": peers.compile_once(losses["eager"])}
    try:
        return losses | verified(compiled, truth, tuple(inputs))
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"compile: left out, {type(error).__name__}", file=sys.stderr)
        return losses


def measured(name: str, rows: int, dim: int, limits: dict[int, dict], options: argparse.Namespace) -> list[dict]:
    """A row for each thread count; of what is left out, one without times."""
    case, found, losses = LOSSES[name], [], {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        about = {"loss": name, "N": rows, "D": dim, "threads": threads}
        if why := _left_out(case, rows, dim, limits[threads]["sgemm"], options):
            found.append({"suite": "grid", "about": about, "median": {}, "why": why})
            continue
        if not losses:
            inputs, losses = case.make(rows, dim)
            with torch.no_grad():
                truth = in_float64(losses["eager"], inputs)
                verified(losses, truth, tuple(inputs))
        timed = _with_compile(losses, truth, inputs) if options.compile else losses
        work = Work("grid", f"{name} N={rows} D={dim}", rows, steps(timed, tuple(inputs)), about=about)
        found.append(measure.measured(work, limits[threads], threads, options.seconds, fewest=3))
    return found


def ratio(row: dict) -> tuple[float, str]:
    """How many times as long as ours the fastest peer takes, and its name."""
    peer = min((name for name in row["median"] if name != "ssl_fast"), key=row["median"].__getitem__)
    return row["median"][peer] / row["median"]["ssl_fast"], peer


def _header(saved: dict, threads: str) -> str:
    about, limits = saved["machine"], saved["limits"][threads]
    level, count = about.get("simd", "no kernels"), "1 thread" if threads == "1" else f"{threads} threads"
    tiles = ", ".join(f"x {dim} {value / 1e9:.0f}" for dim, value in limits["tile"].items())
    return (
        f"{about['processor']}, {level}, {count}, torch {about['torch']}, ssl_fast {about['commit']}, {about['date']}; "
        f"the library's sgemm, GFLOP/s: 2048 x 2048 x 2048 {limits['sgemm'] / 1e9:.0f}, one tile of 192 x 192 {tiles}"
    )


def _table(rows: list[dict]) -> list[str]:
    lines = [
        "| loss | N | D | threads | ours ms | fastest peer | its ms | ratio |",
        "|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        (value, peer), times = ratio(row), row["median"]
        cells = [row["about"][key] for key in ("loss", "N", "D", "threads")]
        cells += [f"{times['ssl_fast'] * 1e3:.3g}", peer, f"{times[peer] * 1e3:.3g}", f"{value:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def markdown(saved: dict) -> str:
    """Shares of the cells, and those below the goal, from what was saved."""
    rows = [row for row in saved["rows"] if row["median"]]
    lines = ["# How many times as long as ours the fastest peer takes", ""]
    lines += [f"- {_header(saved, threads)}" for threads in saved["limits"]]
    lines += ["", "Forward + backward, float32, medians of interleaved rounds; N rows a side.", ""]
    lines += [f"| threads | cells | >= {GOAL} | >= 1 | least | left out |", "|---:|---:|---:|---:|---:|---:|"]
    for threads in map(int, saved["limits"]):
        found = [ratio(row)[0] for row in rows if row["about"]["threads"] == threads]
        out = sum(not row["median"] for row in saved["rows"] if row["about"]["threads"] == threads)
        shares = [f"{sum(x >= bound for x in found) / max(1, len(found)):.0%}" for bound in (GOAL, 1)]
        lines.append(f"| {threads} | {len(found)} | {' | '.join(shares)} | {min(found, default=0):.2f} | {out} |")
    for title, low, high in (("below 1", 0, 1), (f"from 1 to {GOAL}", 1, GOAL)):
        cells = sorted((row for row in rows if low <= ratio(row)[0] < high), key=ratio)
        lines += ["", f"## Cells {title}: {len(cells)}", "", *(_table(cells) if cells else [])]
    out = [row for row in saved["rows"] if not row["median"]]
    lines += ["", f"## Left out: {len(out)}", ""] if out else []
    for row in out:
        lines.append("- {loss}, N = {N}, D = {D}, threads {threads}: ".format(**row["about"]) + row["why"])
    return "\n".join(lines) + "\n"


def heat_maps(path: Path) -> None:
    """The ratios of a saved results.json, one figure a thread count, one panel a loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    saved = json.loads(path.read_text())
    names = list(dict.fromkeys(row["about"]["loss"] for row in saved["rows"]))
    sides = [sorted({row["about"][key] for row in saved["rows"]}) for key in ("N", "D")]
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    width, height = (0.34 * len(values) + 0.8 for values in sides)
    for threads in saved["limits"]:
        mine = [row for row in saved["rows"] if str(row["about"]["threads"]) == threads]
        size = (max(8, columns * width + 0.8), lines * height + 0.8)
        figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
        for axes, name in itertools.zip_longest(panels.flat, names):
            if name is None:
                axes.set_axis_off()
            else:
                image = _panel(axes, name, [row for row in mine if row["about"]["loss"] == name], *sides)
        figure.supxlabel("rows a side N", fontsize=8)
        figure.supylabel("width D", fontsize=8)
        bar = figure.colorbar(image, ax=panels, extend="both", aspect=40, ticks=[1 / 3, 0.5, 1, 2, 3], format="%.2g")
        bar.minorticks_off()
        figure.suptitle(_header(saved, threads).replace("; ", "\n"), fontsize=8)
        figure.savefig(path.with_name(f"ratios-{threads}-threads.png"), dpi=110)
        plt.close(figure)


def _panel(axes, name: str, rows: list[dict], counts: list[int], dims: list[int]):
    from matplotlib.colors import LogNorm

    values = torch.full((len(dims), len(counts)), torch.nan)
    for row in rows:
        if row["median"]:
            value, x, y = ratio(row)[0], counts.index(row["about"]["N"]), dims.index(row["about"]["D"])
            values[y, x] = value
            colour = "black" if 0.5 < value < 2 else "white"
            axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_title(name, fontsize=8)
    axes.set_facecolor("lightgrey")  # of what is left out
    axes.set_xticks(range(len(counts)), counts, fontsize=6, rotation=60)
    axes.set_yticks(range(len(dims)), dims, fontsize=6)
    # Red below 1 and blue above, as far from white at 1/3 as at 3.
    return axes.imshow(values.numpy(), cmap="RdBu", norm=LogNorm(1 / 3, 3), origin="lower", aspect="auto")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench grid", description=__doc__)
    parser.add_argument(
        "--losses", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="LOSS", help=f"of {'; '.join(LOSSES)}"
    )
    parser.add_argument("--full", action="store_true", help="all rows, widths, and 1 and 2 threads")
    parser.add_argument("--rows", nargs="+", type=int, metavar="N", help=f"a side, default of {FEW_ROWS}")
    parser.add_argument("--dims", nargs="+", type=int, metavar="D", help=f"default of {FEW_DIMS}")
    parser.add_argument("--threads", nargs="+", type=int, help="default 2")
    parser.add_argument("--levels", nargs="+", choices=("plain", "avx2", "avx512"), default=[])
    parser.add_argument("--compile", action="store_true", help="beside torch.compile too, which takes minutes")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a cell, if three rounds fit")
    parser.add_argument("--longest", type=float, help="seconds, default 1, of --full 10")
    parser.add_argument("--memory", type=float, default=2e9, help="bytes")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-grid"), help="holds a folder for each level")
    options = parser.parse_args(arguments)
    options.rows = options.rows or (ROWS if options.full else FEW_ROWS)
    options.dims = options.dims or (DIMS if options.full else FEW_DIMS)
    options.longest = options.longest or (10.0 if options.full else 1.0)
    options.threads = options.threads or ([1, 2] if options.full else [2])
    if min(*options.rows, *options.dims, *options.threads) < 1:
        parser.error("--rows, --dims, --threads: expected at least 1")
    return options


def main(arguments: list[str]) -> None:
    options = _parsed(arguments)
    if options.levels and options.levels != [os.environ.get("SSL_FAST_SIMD")]:
        for level in options.levels:  # the last --levels counts
            command = [sys.executable, "-m", "bench", "grid", *arguments, "--levels", level]
            subprocess.run(command, check=True, env=os.environ | {"SSL_FAST_SIMD": level})
        return
    about = measure.machine(max(options.threads)) | {"date": datetime.date.today().isoformat()}
    limits = {threads: measure.limits(threads) for threads in options.threads}
    for threads, limit in limits.items():
        limit["tile"] = {dim: measure.sgemm(192, dim, threads) for dim in options.dims}
    folder, rows = options.output / about.get("simd", "reference"), []
    for name in options.losses:
        for n, dim in itertools.product(options.rows, options.dims):
            print(f"{name} N={n} D={dim} ...", flush=True)
            rows += measured(name, n, dim, limits, options)
        report.save(rows, about, limits, folder)  # after each loss, for a run that is stopped
    text = markdown(json.loads((folder / "results.json").read_text()))
    (folder / "results.md").write_text(text)
    heat_maps(folder / "results.json")
    print(text)
