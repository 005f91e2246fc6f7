"""How things are measured: interleaved medians, the machine's limits, peak memory of a subprocess."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.benchmark import set_torch_threads

import ssl_fast

from .work import Work

ROOT = Path(__file__).resolve().parent.parent


def interleaved(
    runs: dict[str, Callable[[], object]], threads: int, seconds: float, fewest: int = 5
) -> dict[str, list[float]]:
    """Seconds a call, by name: rounds in which each run is timed once, so that all see the same machine.

    As many rounds as fit `seconds`, but at least `fewest`.
    """
    timers = {name: timeit.Timer(run) for name, run in runs.items()}
    with set_torch_threads(threads):
        once = {}
        for name, timer in timers.items():
            timer.timeit(1)  # compiles, faults pages in
            once[name] = timer.timeit(1)
        # Short calls are repeated within a round, to a millisecond, after two that bring their data back to the cache.
        numbers = {name: max(1, int(1e-3 / one)) for name, one in once.items()}
        before = {name: 2 if one < 0.02 else 0 for name, one in once.items()}
        a_round = sum((before[name] + numbers[name]) * one for name, one in once.items())
        rounds = min(200, max(fewest, int(seconds / a_round)))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, timer in timers.items():
                timer.timeit(before[name])
                times[name].append(timer.timeit(numbers[name]) / numbers[name])
    return times


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]


def limits(threads: int) -> dict[str, float]:
    """What the machine can do: float32 matrix product (FLOP/s) and copy (bytes/s, read and written)."""
    source, target = torch.randn(2, 1 << 26).unbind()
    times = interleaved({"copy": lambda: target.copy_(source)}, threads, 1.0)
    return {
        "sgemm": sgemm(2048, 2048, threads),
        "copy": 2 * 4 * (1 << 26) / quantiles(times["copy"])[0],
    }


def sgemm(rows: int, depth: int, threads: int) -> float:
    """FLOP/s of the library's float32 product of (rows, depth) and (depth, rows)."""
    a, b, product = torch.randn(rows, depth), torch.randn(depth, rows), torch.empty(rows, rows)
    times = interleaved({"sgemm": lambda: torch.mm(a, b, out=product)}, threads, 1.0)
    return 2 * rows**2 * depth / quantiles(times["sgemm"])[0]


def measured(work: Work, limits: dict[str, float], threads: int, seconds: float, fewest: int = 5) -> dict:
    """One row of the report."""
    threads = work.threads or threads
    times = interleaved(work.runs, threads, seconds, fewest)
    spread = {name: quantiles(values) for name, values in times.items()}
    ours = spread["ssl_fast"][0]
    share = max(work.flops / limits["sgemm"], work.bytes / limits["copy"]) / ours
    return {
        "suite": work.suite,
        "name": work.name,
        "size": work.size,
        "about": work.about | {"threads": threads},
        "median": {name: values[0] for name, values in spread.items()},
        "quantile20": {name: values[1] for name, values in spread.items()},
        "quantile80": {name: values[2] for name, values in spread.items()},
        "rounds": len(times["ssl_fast"]),
        "flops": work.flops,
        "share_of_limit": share,
        "memory": loss_memory(**work.memory, threads=threads) if work.memory else None,
    }


def watch_memory() -> Callable[[], int]:
    """Starts watching; what it returns says by how many bytes resident memory has risen at its peak. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = _resident("VmRSS:")
    return lambda: _resident("VmHWM:") - before


def _resident(field: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])


# A small loss first: what is allocated once per process is not the loss's.
LOSS_MEMORY = """
import torch, ssl_fast
from bench import measure
from ssl_fast import NegativeQueue, functional

torch.set_num_threads({threads})

def x(*sizes):
    return torch.randn(*sizes, {dim}, requires_grad=True)

def inputs(rows, queue_size):
    return {inputs}

def loss(given):
    return functional.{operator}(**given) if isinstance(given, dict) else functional.{operator}(*given)

with ssl_fast.backend({backend!r}):
    loss(inputs(4, {queue_size} and 4)).backward()
    large = inputs({rows}, {queue_size})
    added = measure.watch_memory()
    loss(large).backward()
print(added())
"""


TWO_ROWS = "[x(rows), x(rows)]"


def loss_memory(
    operator: str,
    rows: int,
    dim: int = 128,
    queue_size: int = 0,
    backend: str = "auto",
    threads: int = 2,
    inputs: str = TWO_ROWS,
) -> int | None:
    """Bytes of resident memory that one forward and backward pass adds to its inputs, in a process of its own.

    inputs: the arguments as Python, a list or a dict, of rows and queue_size, where x(rows) is (rows, dim) in float32,
    whose gradient counts. With queue_size a NegativeQueue follows TWO_ROWS. None where no process can set its peak
    back (only Linux lets it).
    """
    if queue_size and inputs == TWO_ROWS:
        inputs = f"{TWO_ROWS} + [NegativeQueue(queue_size, {dim})]"
    program = LOSS_MEMORY.format(
        inputs=inputs, operator=operator, rows=rows, dim=dim, queue_size=queue_size, backend=backend, threads=threads
    )
    return memory_of(program)


def memory_of(program: str) -> int | None:
    """The number that this Python program prints last, in a process of its own; None where it could not measure."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-W", "ignore", "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if answer.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{answer.stderr}")
    return int(answer.stdout.split()[-1])


def machine(threads: int) -> dict[str, str]:
    """What a figure needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    about = {
        "processor": _processor(),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ssl_fast": ssl_fast.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }
    extension = ssl_fast.operators.loading.extension
    return about | ({"simd": extension.build_info()["simd"]} if extension else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
