"""Gathered or passed round: what each rank sends, holds and takes: `python -m bench.ring [--output FILE.md]`.

InfoNCE in the batch, forward and backward, in 2, 3 and 4 gloo processes of one thread on this machine, beside the
arithmetic of docs/distributed.md. Bytes are counted at torch.distributed's calls; memory is the peak of resident memory
that the step adds. The time is of processes that share this machine's cores and says nothing about a network.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ssl_fast import functional
from ssl_fast.parallel.group import Ring

from . import measure

ALGORITHMS = ("gather", "ring")
MEGABYTE = 1e6


def arithmetic(algorithm: str, world: int, rows: int, dim: int, size: int = 4) -> dict[str, int]:
    """Bytes that a rank of `world` sends and holds: `rows` keys of `dim` numbers of `size` bytes, float32 gradients."""
    block, sums = rows * dim * size, rows * dim * 4
    own = 2 * rows * dim * 4  # the gradients of its queries and keys
    if algorithm == "gather":
        return {"sent": (world - 1) * (block + sums), "held": own + world * (block + sums)}
    return {"sent": 2 * (world - 1) * block + world * sums, "held": own + 2 * block + 3 * sums + 8 * world * rows}


def count_sent() -> dict[str, int]:
    """From now on: bytes that this rank sends, by what sends them, where each part goes to every other rank once."""
    sent = {"gather": 0, "reduce": 0, "pass": 0}

    def counting(function: Callable, kind: str, size: Callable[..., int]) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            sent[kind] += size(*arguments)
            return function(*arguments, **options)

        return call

    def others() -> int:
        return dist.get_world_size() - 1

    sizes = {
        ("all_gather_single", "all_gather_into_tensor"): ("gather", lambda out, x: others() * x.nbytes),
        ("reduce_scatter_single", "reduce_scatter_tensor"): ("reduce", lambda out, x: others() * out.nbytes),
        ("P2POp",): ("pass", lambda kind, x, *_: x.nbytes if kind is dist.isend else 0),
    }
    for names, (kind, size) in sizes.items():
        for name in filter(partial(hasattr, dist), names):
            setattr(dist, name, counting(getattr(dist, name), kind, size))
    return sent


def step(algorithm: str, rows: int, dim: int) -> dict[str, float]:
    """One step of this rank: bytes held, seconds."""
    query, key = (torch.randn(rows, dim, requires_grad=True) for _ in range(2))
    group = Ring() if algorithm == "ring" else dist.group.WORLD
    dist.barrier()
    added, begin = measure.watch_memory(), time.perf_counter()
    functional.info_nce(query, key, group=group).backward()
    return {"held": added(), "seconds": time.perf_counter() - begin}


def _rank(rank: int, world: int, folder: str, algorithm: str, rows: int, dim: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    step(algorithm, 8, dim)  # what is allocated once per process is not the step's
    sent = count_sent()
    found = step(algorithm, rows, dim)
    Path(folder, f"{rank}.json").write_text(json.dumps({**found, "sent": sum(sent.values())}))
    dist.barrier()
    dist.destroy_process_group()


def measured(algorithm: str, world: int, rows: int, dim: int) -> dict[str, float]:
    """The largest figure of any rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, folder, algorithm, rows, dim), nprocs=world)
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return {name: max(found[name] for found in ranks) for name in ranks[0]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ring", description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--rows", type=int, default=16384, help="of each rank")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    # Freed memory goes back at once: the peak is what was in use, not what the allocator kept.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    about = ", ".join(f"{name} {value}" for name, value in measure.machine(1).items())
    lines = [
        f"InfoNCE in the batch, {options.rows} x {options.dim} float32 a rank, forward and backward, MB of a rank.",
        about,
        "",
        "| processes | | sent | by the arithmetic | memory added | by the arithmetic | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for world in options.processes:
        for algorithm in ALGORITHMS:
            found = measured(algorithm, world, options.rows, options.dim)
            expected = arithmetic(algorithm, world, options.rows, options.dim)
            figures = [x[name] / MEGABYTE for name in ("sent", "held") for x in (found, expected)]
            words = " | ".join(f"{x:.1f}" for x in figures)
            lines.append(f"| {world} | {algorithm} | {words} | {found['seconds']:.1f} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
