"""`python -m bench.gpu [FOLDER]`: all stages; see bench/gpu_report.sh."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from . import stages
from .plan import plan
from .processes import Deadline

SECONDS, DRY_SECONDS = 540.0, 1200.0  # a dry run may have two cores to compile on


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="default: bench/results/DATE-DEVICE")
    parser.add_argument("--seconds", type=float, help=f"the whole run ends by then (default {SECONDS:.0f})")
    asked = parser.parse_args()
    dry = os.environ.get("DRY", "0") == "1"
    deadline = Deadline(asked.seconds or (DRY_SECONDS if dry else SECONDS))
    # A background job of a shell ignores interrupts, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    name, memory = ("dry run", 0) if dry else stages.device()
    folder = (asked.folder or stages.default_folder(name)).resolve()
    stages.clear(folder)
    code = stages.run_all(plan(folder, dry, memory), folder, deadline)
    print(f"\n{(folder / 'report.md').read_text()}\n{folder}/report.md, exit status {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
