"""The stage "times": each row is written as it is measured, what matters most first.

A row that fails is written with its reason; where it has left the device unusable the process ends and is started
again for the next ones (processes.py). Rows that the journal has are not measured again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from .about import about
from .journal import Journal
from .work import MissingLibraryError, Work

LEAST = 5.0  # seconds: with less left no row is begun
AGAIN = 2  # exit code of a process whose device is lost


def measure(works: Iterable[Work], journal: Journal, left=lambda: LEAST) -> int:
    """Appends a row for each work that the journal does not have. left: seconds. Returns the exit code."""
    import torch

    from bench import peers

    from .pytest_journal import device_is_lost
    from .timing import reason

    done, code = journal.keys(), 0
    for work in works:
        if work.key in done:
            continue
        if left() < LEAST:
            print(f"no time was left for {work.key}")
            continue
        journal.begin(work.key)
        start, row = time.monotonic(), {"key": work.key, "outcome": "measured", **work.about, **about()}
        try:
            torch.manual_seed(0)
            row |= work.measure()
            if "ssl_fast" in row.get("failed", {}):
                raise RuntimeError(row["failed"]["ssl_fast"])
        except MissingLibraryError as error:
            row |= {"outcome": "skipped", "message": str(error)}
        except Exception as error:
            row |= {"outcome": "failed", "message": reason(error)}
            code = 1
        absent = {"absent": dict(peers.ABSENT)} if peers.ABSENT else {}
        journal.end(row | absent | {"seconds": round(time.monotonic() - start, 2)})
        print(row, flush=True)
        words = [row.get("message", ""), *row.get("failed", {}).values()]
        if any(device_is_lost(message) for message in words):
            return AGAIN
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return code


def all_works() -> list[Work]:
    from . import losses, step, updates

    first, rest = losses.works()
    return [*first, *updates.works(), *step.works(), *rest]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.times", description=__doc__)
    parser.add_argument("--journal", type=Path, required=True, help="the file that rows are appended to")
    parser.add_argument("--marker", type=Path, required=True, help="holds the row that is being measured")
    parser.add_argument("--stage", default="times")
    parser.add_argument("--share", default="0/1", help="one process measures all")
    asked = parser.parse_args()
    end = time.monotonic() + float(os.environ.get("BENCH_SECONDS", "inf"))
    if os.environ.get("TRITON_INTERPRET") == "1":
        from . import interpreter

        interpreter.use()
    return measure(all_works(), Journal(asked.journal, asked.marker), lambda: end - time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
