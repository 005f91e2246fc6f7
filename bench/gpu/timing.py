"""Times on a device: rounds in which every run is timed once, by events, from a cold cache; memory; graphs.

With TRITON_INTERPRET=1 a dry run: the same code on CPU tensors, once each, without times worth anything.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

DRY = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if DRY else "cuda"
FLUSHED = 256 << 20  # bytes written before each timed call: more than any second-level cache
SECONDS = 0.3  # of timed calls for each run
ROUNDS = (7, 100)


def graph_of(run: Callable[[], object]) -> Callable[[], None]:
    """A replay of what run() launches: the time without the host's share."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def added_megabytes(run: Callable[[], object]) -> float:
    """The peak of GPU memory that a call adds to what was there before it."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def reason(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


class Stopwatch:
    """The milliseconds of one call."""

    def __init__(self):
        self.cache = torch.empty(0 if DRY else FLUSHED, dtype=torch.int8, device=DEVICE)

    def __call__(self, run: Callable[[], object]) -> float:
        if DRY:
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()  # the device is busy with it while the host prepares the call
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def warmed(runs: dict[str, Callable[[], object]], failed: dict[str, str]) -> dict[str, Callable[[], object]]:
    """Those that can be called twice; of the others `failed` says why not."""
    good = {}
    for name, run in runs.items():
        try:
            run()
            if not DRY:
                run()
                torch.cuda.synchronize()
            good[name] = run
        except Exception as error:  # a peer that cannot run costs its own figure
            failed[name] = reason(error)
    return good


def interleaved(runs: dict[str, Callable[[], object]], failed: dict[str, str]) -> dict[str, list[float]]:
    """Milliseconds by name, one of each round: all see the same clock and temperature of the device."""
    watch, runs = Stopwatch(), warmed(runs, failed)
    a_round = sum(watch(run) for run in runs.values())
    least, most = (1, 1) if DRY else ROUNDS
    rounds = min(most, max(least, int(1e3 * SECONDS * len(runs) / max(a_round, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(watch(run))
    return times


def measured(runs: dict[str, Callable[[], object]], captured: tuple[str, ...] = (), ours: str = "ssl_fast") -> dict:
    """Medians in milliseconds, and each as a multiple of ours: the median of the rounds' ratios.

    captured: runs that are timed inside a CUDA graph too, as "NAME, graph"; graphs are compared with our graph.
    """
    failed: dict[str, str] = {}
    for name in [] if DRY else captured:
        try:
            runs = {**runs, f"{name}, graph": graph_of(runs[name])}
        except Exception as error:
            failed[f"{name}, graph"] = reason(error)
    times = interleaved(runs, failed)
    row: dict = {"milliseconds": {name: statistics.median(values) for name, values in times.items()}}
    row["ratio"] = {}
    for name, values in times.items():
        base = times.get(f"{ours}, graph" if name.endswith(", graph") else ours)
        if base is not None and base is not values:
            row["ratio"][name] = statistics.median(a / b for a, b in zip(values, base, strict=True))
    return row | ({"failed": failed} if failed else {})
