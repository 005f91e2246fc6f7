"""`python -m bench compat`: each library's own call and the same code after the one changed line; time and memory.

A case is the lines a user has. Theirs imports from the library, ours from ssl_fast.compat; nothing else differs. Times
are interleaved in one process; memory is what one call adds, in a process of its own for each.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import measure

MEMORY = """
from bench import compat, measure

case = compat.CASES[{index}]
case.step({ours}, 4)()
step = case.step({ours}, {size})
added = measure.watch_memory()
step()
print(added())
"""


@dataclass(frozen=True)
class Case:
    """names: imported from `module` or ssl_fast.compat.`library`. code: of N, sets step(); sizes: of N.

    largest: N above which theirs is not run, for `why`.
    """

    library: str
    module: str
    names: str
    work: str
    code: str
    sizes: tuple[int, ...]
    largest: int = 1 << 30
    why: str = ""

    def step(self, ours: bool, size: int) -> Callable[[], None]:
        module = f"ssl_fast.compat.{self.library}" if ours else self.module
        scope: dict[str, Any] = {"torch": torch, "N": size}
        torch.manual_seed(0)
        exec(f"from {module} import {self.names}\n{PREAMBLE}{self.code}", scope)
        return scope["step"]


PREAMBLE = """
from torch.nn.functional import normalize
def x(*sizes): return torch.randn(*sizes, requires_grad=True)
def trains(loss, *inputs):
    def step():
        for tensor in inputs: tensor.grad = None
        loss(*inputs).backward()
    return step
"""

CASES = (
    Case("lightly", "lightly.loss", "NTXentLoss", "N images, D = 128",
         "step = trains(NTXentLoss(0.1), x(N, 128), x(N, 128))", (256, 1024, 4096)),
    Case("lightly", "lightly.loss", "NTXentLoss", "N images against a bank of 65536, D = 128",
         "step = trains(NTXentLoss(0.1, memory_bank_size=(65536, 128)), x(N, 128), torch.randn(N, 128))", (256,)),
    Case("lightly", "lightly.loss", "DCLLoss", "N images, D = 128",
         "step = trains(DCLLoss(0.1), x(N, 128), x(N, 128))", (256, 1024)),
    Case("pytorch_metric_learning", "pytorch_metric_learning.losses", "NTXentLoss, SelfSupervisedLoss",
         "N images, D = 128", "step = trains(SelfSupervisedLoss(NTXentLoss(0.1)), x(N, 128), x(N, 128))",
         (64, 128, 1024), 128, "not run: 34 GB a temporary"),
    Case("pytorch_metric_learning", "pytorch_metric_learning.losses", "SupConLoss", "N rows of 100 classes, D = 128",
         "labels = torch.arange(N) % 100\nstep = trains(lambda z: SupConLoss(0.1)(z, labels), x(N, 128))",
         (256, 2048)),
    Case("info_nce", "info_nce", "InfoNCE", "N queries, the others' positives, D = 128",
         "step = trains(InfoNCE(0.1), x(N, 128), x(N, 128))", (256, 4096)),
    Case("info_nce", "info_nce", "InfoNCE", "N queries, 65536 negatives, D = 128",
         "negatives = torch.randn(65536, 128)\n"
         "step = trains(lambda q, k: InfoNCE(0.1)(q, k, negatives), x(N, 128), x(N, 128))", (256,)),
    Case("open_clip", "open_clip.loss", "ClipLoss", "N pairs, D = 512",
         "images, texts = (normalize(torch.randn(N, 512)).requires_grad_() for _ in range(2))\n"
         "scale = torch.tensor(14.3, requires_grad=True)\nstep = trains(ClipLoss(), images, texts, scale)",
         (256, 4096)),
    Case("open_clip", "open_clip.loss", "SigLipLoss", "N pairs, D = 512",
         "images, texts = (normalize(torch.randn(N, 512)).requires_grad_() for _ in range(2))\n"
         "scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))\n"
         "step = trains(SigLipLoss(0, 1), images, texts, scale, bias)", (256, 4096)),
    Case("sentence_transformers", "sentence_transformers.sentence_transformer.losses", "MultipleNegativesRankingLoss",
         "N pairs with a hard negative each, D = 384",
         "loss = MultipleNegativesRankingLoss(torch.nn.Identity())\n"
         "def of_rows(*rows): return loss.compute_loss_from_embeddings(list(rows), None)\n"
         "step = trains(of_rows, x(N, 384), x(N, 384), x(N, 384))",
         (256, 4096)),
)  # fmt: skip
LIBRARIES = tuple(dict.fromkeys(case.library for case in CASES))


def measured(case: Case, size: int, threads: int, seconds: float, memory: bool) -> dict[str, Any]:
    """One row of the report; what was not run is None."""
    sides = {"ours": True} if size > case.largest else {"ours": True, "theirs": False}
    times = measure.interleaved({side: case.step(ours, size) for side, ours in sides.items()}, threads, seconds)
    spread = {side: measure.quantiles(values) for side, values in times.items()}
    return {
        "library": case.library,
        "names": case.names,
        "work": case.work,
        "size": size,
        "seconds": {side: spread.get(side) for side in ("theirs", "ours")},
        "memory": {
            side: _memory(case, size, sides[side]) if memory and side in sides else None for side in ("theirs", "ours")
        },
        "rounds": len(times["ours"]),
        "why": case.why if size > case.largest else "",
    }


def _memory(case: Case, size: int, ours: bool) -> int | None:
    """Bytes that one call adds, in a process of its own; None where it cannot be asked."""
    return measure.memory_of(MEMORY.format(index=CASES.index(case), ours=ours, size=size))


def markdown(saved: dict[str, Any]) -> str:
    about = ", ".join(f"{key} {value}" for key, value in saved["machine"].items())
    lines = [
        "# The same code after one changed line", "",
        f"{about}; sgemm {saved['limits']['sgemm'] / 1e9:.0f} GFLOP/s in this run", "",
        "Loss and gradients, medians; memory is what a call adds.", "",
        "| library | names | work | theirs ms | ours ms | theirs / ours | theirs MB | ours MB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in saved["rows"]:
        theirs, ours = row["seconds"]["theirs"], row["seconds"]["ours"]
        cells = [row["library"], row["names"], row["work"].replace("N ", f"{row['size']} ", 1)]
        cells += [_number(theirs[0], 1e3) if theirs else row["why"], _number(ours[0], 1e3)]
        cells += [f"{theirs[0] / ours[0]:.1f}" if theirs else ""]
        cells += [_number(row["memory"][side], 1e-6) for side in ("theirs", "ours")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, factor: float) -> str:
    return "" if value is None else f"{float(f'{value * factor:.3g}'):g}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench compat", description=__doc__)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)}; default all")
    parser.add_argument("--quick", action="store_true", help="the smallest size of each, no memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("runs/bench-compat"))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.libraries if name not in LIBRARIES]
    if unknown:
        parser.error(f"LIBRARY: expected one of {', '.join(LIBRARIES)}, got {unknown[0]!r}")
    cases = [case for case in CASES if case.library in (options.libraries or LIBRARIES)]
    torch.set_num_threads(options.threads)
    about = measure.machine(options.threads) | {"date": datetime.date.today().isoformat()}
    for name in dict.fromkeys(case.library for case in cases):
        ours = importlib.import_module(f"ssl_fast.compat.{name}")
        about[name] = importlib.metadata.version(ours.DISTRIBUTION)
    limits = measure.limits(options.threads)
    rows = []
    for case in cases:
        for size in case.sizes[:1] if options.quick else case.sizes:
            print(f"{case.library} {case.names}, N = {size} ...", flush=True)
            seconds = 0.3 if options.quick else 2.0
            rows.append(measured(case, size, options.threads, seconds, not options.quick))
    saved = {"machine": about, "limits": limits, "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(saved, indent=1) + "\n")
    (options.output / "results.md").write_text(markdown(saved))
    print(markdown(saved))
