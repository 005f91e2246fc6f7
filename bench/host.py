"""What a call costs the host: `python -m bench.host [--output FILE.md]`.

Forward and backward of each loss, eager and compiled, with next to no arithmetic (2 rows of 2 numbers) and at N = 32,
D = 128, on one thread. The medians of interleaved rounds; beside them what the same formula takes in plain PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

import ssl_fast
from ssl_fast import NegativeQueue, functional

from . import measure

SIZES = {"host alone": (2, 2), "N = 32": (32, 128)}


def arguments(count: int, dim: int) -> dict[str, tuple[Callable, tuple]]:
    """By row of the table: a function and its arguments, of which float tensors get their gradient."""

    def x(*sizes):
        return torch.randn(*sizes, dim, requires_grad=True)

    two, labels, index = (x(count), x(count)), torch.arange(count) // 2, torch.arange(count)
    queue, bank = NegativeQueue(2 * count, dim), torch.nn.functional.normalize(torch.randn(2 * count, dim), dim=1)
    found = {name: (getattr(functional, name), two) for name in ("nt_xent", "dcl", "clip", "siglip")}
    return found | {
        "info_nce in batch": (functional.info_nce, two),
        "info_nce, queue": (functional.info_nce, (*two, queue)),
        "info_nce, queue, ids": (_excluding, (*two, queue, index, torch.arange(2 * count))),
        "moco_v3": (functional.moco_v3, (*two, x(count), x(count))),
        "supcon": (functional.supcon, (x(count), labels)),
        "hard_negative_nt_xent": (functional.hard_negative_nt_xent, two),
        "multi_positive_info_nce": (functional.multi_positive_info_nce, (x(count), x(count, 2))),
        "instance_discrimination": (functional.instance_discrimination, (x(count), index, bank)),
    }


def _excluding(query, positive, queue, ids, queue_ids):
    return functional.info_nce(query, positive, queue, exclude=(ids, queue_ids))


def step(function: Callable, given: tuple) -> Callable[[], object]:
    leaves = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
    return lambda: torch.autograd.grad(function(*given), leaves)


def runs(name: str, count: int, dim: int) -> dict[str, Callable[[], object]]:
    function, given = arguments(count, dim)[name]

    def plain(*tensors):
        with ssl_fast.backend("reference"):
            return function(*tensors)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return {"eager": step(function, given), "compiled": step(compiled, given), "plain PyTorch": step(plain, given)}


def table() -> list[str]:
    lines = [
        "| us a call, forward and backward | " + " | ".join(f"{way}, {size}" for size in SIZES for way in _WAYS) + " |",
        "|---|" + "---:|" * (len(SIZES) * len(_WAYS)),
    ]
    for name in arguments(2, 2):
        cells = []
        for count, dim in SIZES.values():
            times = measure.interleaved(runs(name, count, dim), threads=1, seconds=1.0)
            cells += [f"{1e6 * measure.quantiles(times[way])[0]:.0f}" for way in _WAYS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


_WAYS = ("eager", "compiled", "plain PyTorch")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = ", ".join(f"{key} {value}" for key, value in measure.machine(1).items())
    text = "\n".join(["# What a call costs the host", "", about, "", *table(), ""])
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
