"""Rows to a table on the screen, JSON and a plot. Plots are drawn from the saved rows only."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table


def show(rows: list[dict], about: dict, limits: dict[str, float]) -> None:
    console = Console()
    if not console.is_terminal:  # a file has no width: no name is cut
        console.width = 160
    console.print("  ".join(f"{key} {value}" for key, value in about.items()))
    console.print(f"sgemm {limits['sgemm'] / 1e9:.0f} GFLOP/s  copy {limits['copy'] / 1e9:.0f} GB/s")
    for suite in dict.fromkeys(row["suite"] for row in rows):
        mine = [row for row in rows if row["suite"] == suite]
        names = list(dict.fromkeys(name for row in mine for name in row["median"] if name != "ssl_fast"))
        others_are = "shares of it" if suite == "step" else "how many times as long the others take"
        table = Table(title=f"{suite}: ssl_fast, and {others_are}")
        for column in ("work", "ms", *names, "GFLOP/s", "% of limit", "memory MB"):
            table.add_column(column, justify="left" if column == "work" else "right")
        for row in mine:
            ours = row["median"]["ssl_fast"]
            others = [f"{row['median'][name] / ours:.2f}" if name in row["median"] else "" for name in names]
            share = f"{100 * row['share_of_limit']:.0f}" if row["share_of_limit"] else ""
            gflops = f"{row['flops'] / ours / 1e9:.0f}" if row["flops"] else ""
            memory = f"{row['memory'] / 1e6:.0f}" if row.get("memory") is not None else ""
            table.add_row(row["name"], f"{ours * 1e3:.3f}", *others, gflops, share, memory)
        console.print(table)
    for suite, (time_exponent, memory_exponent) in growth(rows).items():
        memory = "" if memory_exponent is None else f", memory as N^{memory_exponent:.2f}"
        console.print(f"{suite}: time grows as N^{time_exponent:.2f}{memory} (D=128, the larger half of the sizes)")


def growth(rows: list[dict]) -> dict[str, tuple[float, float | None]]:
    """Exponents of time and of memory in N, fitted through the larger half of each suite's sizes."""
    fits = {}
    for suite in dict.fromkeys(
        row["suite"] for row in rows if row["about"].get("D") == 128 and "K" not in row["about"]
    ):
        mine = sorted(
            (row for row in rows if row["suite"] == suite and row["about"]["D"] == 128), key=lambda r: r["size"]
        )
        mine = mine[len(mine) // 2 :]
        if len(mine) < 2:
            continue
        memory = [(row["size"], row["memory"]) for row in mine if row.get("memory")]
        fits[suite] = (
            _exponent([(row["size"], row["median"]["ssl_fast"]) for row in mine]),
            _exponent(memory) if len(memory) > 1 else None,
        )
    return fits


def _exponent(points: list[tuple[float, float]]) -> float:
    x, y = zip(*((math.log(size), math.log(value)) for size, value in points), strict=True)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def save(rows: list[dict], about: dict, limits: dict[str, float], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps({"machine": about, "limits": limits, "rows": rows}, indent=1) + "\n")
    plot(path)


def plot(path: Path) -> None:
    """NT-Xent's time, memory and share of the machine's limit against N, from a saved results.json, beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    saved = json.loads(path.read_text())
    rows = [row for row in saved["rows"] if row["suite"] == "nt_xent" and row["about"]["D"] == 128]
    if not rows:
        return
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4))
    for name in dict.fromkeys(name for row in rows for name in row["median"]):
        mine = [row for row in rows if name in row["median"]]
        sizes, seconds = [row["size"] for row in mine], [row["median"][name] for row in mine]
        style = {"marker": "o", "label": name, "linewidth": 2.5 if name == "ssl_fast" else 1.2}
        left.loglog(sizes, [1e3 * x for x in seconds], **style)
        right.loglog(sizes, [row["flops"] / x / 1e9 for row, x in zip(mine, seconds, strict=True)], **style)
    left.set(ylabel="forward + backward, ms", title="time")
    sizes = [row["size"] for row in rows]
    middle.loglog(sizes, [4 * size**2 / 1e6 for size in sizes], "--", label="one N x N matrix")
    memory = [(row["size"], row["memory"] / 1e6) for row in rows if row.get("memory")]
    if memory:
        middle.loglog(*zip(*memory, strict=True), marker="o", label="ssl_fast, peak added")
    middle.set(ylabel="MB", title="memory")
    right.axhline(saved["limits"]["sgemm"] / 1e9, color="grey", linestyle="--", label="sgemm peak")
    right.set(ylabel="GFLOP/s, counted as 4 N² D", title="share of the machine's limit")
    for axes in (left, middle, right):
        axes.set_xlabel("rows N")
        axes.legend(fontsize=8)
    about = saved["machine"]
    versions = f"torch {about['torch']}, ssl_fast {about['commit']}, {about['date']}"
    figure.suptitle(
        f"NT-Xent, D=128, float32, {about['processor']}, {about['threads']} threads, {versions}", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path.with_name("nt_xent.png"), dpi=110)
    plt.close(figure)
