"""The stages of bench/gpu_report.sh, in their order, with their limits."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from .stages import Stage, python

# Processes that share the tests: nine tenths of a test's time is compiling, on one core of the host.
MOST_PROCESSES = 6
MEMORY_EACH = 12 << 30  # bytes of GPU memory: tests of offsets beyond 32 bits take 9 GB
LONG = "long"
QUICK = "tests/kernels"  # where the tests marked quick are


def processes(cores: int, memory: int) -> int:
    """memory: of the GPU, in bytes; 0 where it is not known."""
    return max(1, min(MOST_PROCESSES, cores // 2, memory // MEMORY_EACH))


def tests(name: str, limit: float, each: float, arguments: list[str], count: int, **more: str) -> Stage:
    """each: seconds that a test may take. count: processes. more: environment variables.

    The long tests take what is left of the time, and are cut off.
    """
    # pytest's cache is off: several processes would write the same one.
    plain = ["-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "bench.gpu.pytest_journal"]
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        # Nothing of the tests needs a plugin, and one that does not fit could end them all.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return Stage(
        name,
        python(*plain, *arguments, f"--seconds-each={each}"),
        limit,
        rows="tests.jsonl",
        processes=count,
        environment={**environment, **more},
        open_end=name == LONG,
    )


def times(limit: float, **more: str) -> Stage:
    command = python("-m", "bench.gpu.times")
    return Stage("times", command, limit, "rows.jsonl", correctness=False, open_end=True, environment=more)


def building(folder: Path) -> list[Stage]:
    """The extension with the kernels in CUDA C++; where they cannot be compiled, Triton's can still be tested."""
    return [
        Stage("environment", python("-m", "bench.gpu.environment", str(folder)), 40, essential=True),
        Stage("build", python("-m", "bench.gpu.build"), 160),
        Stage("extension", python("-m", "bench.gpu.build", "--any"), 120, essential=True),
    ]


def gpu_stages(folder: Path, count: int) -> list[Stage]:
    stages = [
        *building(folder),
        tests("quick", 120, 60, ["-m", "gpu and quick", QUICK], count),
        Stage("doctor", python("-m", "ssl_fast", "doctor"), 40),
    ]
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *python("-m", "bench.gpu.small")]
        # Each allocation by itself, so that a read beyond one is seen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        stages.append(Stage(tool, command, 35, needs="compute-sanitizer", environment=alone, open_end=True))
    return [*stages, times(150), tests(LONG, 3600, 120, ["-m", "gpu and not slow", "tests"], count)]


def dry_stages(folder: Path) -> list[Stage]:
    """Each stage on the CPU, the kernels in Triton's interpreter: it checks the scripts and times nothing."""
    interpreted = {"TRITON_INTERPRET": "1"}
    few = ["-m", "quick", f"{QUICK}/test_quick_gpu.py", "-k", "nt_xent or queue"]
    more = ["-m", "not slow and not gpu", f"{QUICK}/test_ema_interpreted.py"]
    return [
        *(
            replace(stage, limit=3600) for stage in building(folder)
        ),  # a machine without a GPU may have few cores to compile on
        tests("quick", 150, 60, few, 2, **interpreted),
        Stage("doctor", python("-m", "ssl_fast", "doctor"), 90),
        Stage("small", python("-m", "bench.gpu.small"), 90, environment=interpreted),
        times(150, **interpreted),
        tests(LONG, 40, 120, more, 1, **interpreted),
    ]


def plan(folder: Path, dry: bool, memory: int = 0) -> list[Stage]:
    return dry_stages(folder) if dry else gpu_stages(folder, processes(os.cpu_count() or 1, memory))
