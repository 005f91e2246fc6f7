"""`python -m bench [SUITE ...] [--quick] [--threads N] [--output FOLDER]`.

Training beside lightly: `python -m bench train --help`; the drop-ins beside their libraries: `compat --help`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
from pathlib import Path

import torch

from . import measure, report
from .suites import SUITES
from .work import Work


def measured(work: Work, limits: dict[str, float], threads: int, seconds: float) -> dict:
    """One row of the report."""
    threads = work.threads or threads
    times = measure.interleaved(work.runs, threads, seconds)
    spread = {name: measure.quantiles(values) for name, values in times.items()}
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
        "memory": measure.loss_memory(**work.memory, threads=threads) if work.memory else None,
    }


def main() -> None:
    if sys.argv[1:2] in (["train"], ["compat"]):  # by options of their own: no suites
        importlib.import_module(f".{sys.argv[1]}", __package__).main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--quick", action="store_true", help="few sizes, under two minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of results.json and plot")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    for name in options.suites:
        if name not in SUITES:
            parser.error(f"SUITE: expected one of {', '.join(SUITES)}, got {name!r}")
    torch.set_num_threads(options.threads)
    about = measure.machine(options.threads) | {"date": datetime.date.today().isoformat()}
    limits = measure.limits(options.threads)
    rows = []
    for name in options.suites or SUITES:
        for work in SUITES[name](options.quick):
            print(f"{work.suite} {work.name} ...", flush=True)
            rows.append(measured(work, limits, options.threads, 1.0 if options.quick else 1.5))
    report.show(rows, about, limits)
    report.save(rows, about, limits, options.output)
    print(f"saved {options.output}/results.json")


if __name__ == "__main__":
    main()
