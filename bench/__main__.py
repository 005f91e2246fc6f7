"""`python -m bench [SUITE ...] [--quick] [--threads N] [--output FOLDER]`.

Training beside lightly: `python -m bench train --help`; the drop-ins beside their libraries: `compat --help`; every
loss by rows, width and vector level: `grid --help`.
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


def main() -> None:
    if sys.argv[1:2] in (["train"], ["compat"], ["grid"]):  # by options of their own: no suites
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
            rows.append(measure.measured(work, limits, options.threads, 1.0 if options.quick else 1.5))
    report.show(rows, about, limits)
    report.save(rows, about, limits, options.output)
    print(f"saved {options.output}/results.json")


if __name__ == "__main__":
    main()
