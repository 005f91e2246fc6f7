"""Simulates the whole list of cases and writes what came out: `python -m tests.ptx.report [sm_80 sm_90]`.

build/ptx/cases-DEVICES.csv has a line for each case; build/ptx/report-DEVICES.md the worst error by operator, kind and
device, and launches and warp instructions by kernel. Both are written after each case: a run that is ended keeps them.
"""

import csv
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .cases import Case, everything
from .errors import recorded
from .simulator import build


class Outcome(NamedTuple):
    """One case on one device. loss, gradient: errors in units of the largest entry; 0 where none was compared."""

    operator: str
    kind: str
    device: str
    loss: float
    gradient: float
    launches: int
    instructions: int  # of warps
    seconds: float
    failure: str
    case: str


def outcome_of(case: Case, launches: Counter, instructions: Counter) -> Outcome:
    """Adds to launches and instructions, by kernel and device."""
    start, failure = time.perf_counter(), ""
    before = sum(launches.values()), sum(instructions.values())

    def count(kernel: str, executed: int) -> None:
        launches[kernel, case.machine.device] += 1
        instructions[kernel, case.machine.device] += executed

    with recorded() as worst:
        try:
            case.run(launched=count)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
    after = sum(launches.values()), sum(instructions.values())
    return Outcome(
        case.operator, case.kind, case.machine.device, worst["loss"], worst["gradient"], after[0] - before[0],
        after[1] - before[1], time.perf_counter() - start, " ".join(failure.split())[:400], str(case),
    )  # fmt: skip


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def summary(outcomes: list[Outcome], launches: Counter, instructions: Counter) -> str:
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.operator, outcome.kind, outcome.device].append(outcome)
    by_operator = [
        (
            *key, len(group), f"{max(o.loss for o in group):.1e}", f"{max(o.gradient for o in group):.1e}",
            sum(o.launches for o in group), sum(o.instructions for o in group), sum(bool(o.failure) for o in group),
        )
        for key, group in sorted(groups.items())
    ]  # fmt: skip
    by_kernel = [(*key, launches[key], instructions[key]) for key in sorted(launches)]
    header = ("operator", "kind", "device", "cases", "loss", "gradient", "launches", "warp instructions", "failures")
    failures = [f"- {o.device}: {o.case}: {o.failure}" for o in outcomes if o.failure]
    return (
        "Errors against float64 in units of the largest entry.\n\n"
        + table(header, by_operator)
        + "\n"
        + table(("kernel", "device", "launches", "warp instructions"), by_kernel)
        + "\n"
        + "\n".join([f"{len(failures)} of {len(outcomes)} cases differ or are reported.", *failures])
        + "\n"
    )


def main(devices: list[str]) -> int:
    torch.set_num_threads(1)
    folder, name = build.cache(), "-".join(devices)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, launches, instructions = [], Counter(), Counter()
    cases = [case.on(device) for device in devices for case in everything()]
    # What is there early is of all kinds.
    random.Random(0).shuffle(cases)
    with Path(folder, f"cases-{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Outcome._fields)
        for case in cases:
            outcomes.append(outcome_of(case, launches, instructions))
            writer.writerow(outcomes[-1])
            file.flush()
            Path(folder, f"report-{name}.md").write_text(summary(outcomes, launches, instructions))
            if outcomes[-1].failure:
                print(f"{case}: {outcomes[-1].failure}", flush=True)
    print(Path(folder, f"report-{name}.md").read_text())
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["sm_80", "sm_90"]))
