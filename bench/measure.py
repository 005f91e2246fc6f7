"""How things are measured: interleaved medians, the machine's limits, peak memory of a subprocess."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

import ssl_fast

ROOT = Path(__file__).resolve().parent.parent


def interleaved(runs: dict[str, Callable[[], object]], threads: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a call, by name: rounds in which each run is timed once, so that all see the same machine."""
    timers = {name: Timer("run()", globals={"run": run}, num_threads=threads) for name, run in runs.items()}
    once = {}
    for name, timer in timers.items():
        timer.timeit(2)  # compiles, faults pages in
        once[name] = timer.timeit(1).mean
    # Short calls are repeated within a round, to a millisecond.
    numbers = {name: max(1, int(1e-3 / one)) for name, one in once.items()}
    a_round = sum(numbers[name] * one for name, one in once.items())
    rounds = min(200, max(5, int(seconds / a_round)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(numbers[name]).mean)
    return times


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]


def limits(threads: int) -> dict[str, float]:
    """What the machine can do: float32 matrix product (FLOP/s) and copy (bytes/s, read and written)."""
    a, b = torch.randn(2, 2048, 2048).unbind()
    product = torch.empty(2048, 2048)
    source, target = torch.randn(2, 1 << 26).unbind()
    runs = {"sgemm": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}
    times = interleaved(runs, threads, 2.0)
    return {
        "sgemm": 2 * 2048**3 / quantiles(times["sgemm"])[0],
        "copy": 2 * 4 * (1 << 26) / quantiles(times["copy"])[0],
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
