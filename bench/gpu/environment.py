"""What the machine is and what it has: FOLDER/environment.json. Exit status 3 where torch sees no GPU.

Each entry is asked for by itself: one that raises is the text of its error.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .about import about, version

PACKAGES = (
    "numpy", "pytest", "pytest-timeout", "hypothesis", "ninja", "torchvision", "lightning", "lightly",
    "pytorch-metric-learning", "open_clip_torch", "info-nce-pytorch",
)  # fmt: skip


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def gpu() -> dict:
    import torch

    properties = torch.cuda.get_device_properties(0)
    names = ("major", "minor", "multi_processor_count", "total_memory", "L2_cache_size",
             "shared_memory_per_block_optin", "gcnArchName")  # fmt: skip
    return {name: getattr(properties, name) for name in names if hasattr(properties, name)}


def tiles() -> dict:
    """The GPU's architecture, the row of the table of tiles that it gets, and the tiles for rows of 128 entries."""
    import torch

    from ssl_fast.kernels.tuning import table

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu", 0)
    kinds, kernels = ("half", "tf32", "ieee"), ("symmetric_tiles", "online_softmax", "weighted_rows")
    chosen = {f"{kernel}, {kind}": table.tile(kernel, where, kind, 128) for kind in kinds for kernel in kernels}
    name, shared = table.architecture(where), table.shared_limit(where)
    row, why = table.choice(name, shared)
    return {"architecture": name, "shared memory": shared, "row": f"{row} {why}".strip(), **chosen}


ENTRIES: dict[str, Callable[[], object]] = {
    "about": about,
    "python": platform.python_version,
    "system": platform.platform,
    "cores": lambda: len(os.sched_getaffinity(0)),
    "packages": lambda: {name: version(name) for name in PACKAGES},
    "driver": lambda: output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
    "nvcc": lambda: output("nvcc", "--version").splitlines()[-1],
    "sanitizer": lambda: output("compute-sanitizer", "--version").splitlines()[-1],
    "gpu": gpu,
    "tiles": tiles,
}


def main() -> int:
    found: dict[str, object] = {}
    path = Path(sys.argv[1], "environment.json")
    for name, entry in ENTRIES.items():
        try:
            found[name] = entry()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:300]
        print(f"{name}: {found[name]}", flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    import torch

    if os.environ.get("DRY") != "1" and not torch.cuda.is_available():
        print("torch sees no GPU; DRY=1 runs every stage without one")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
