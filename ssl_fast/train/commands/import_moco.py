"""`ssl-fast import-moco`: a checkpoint of facebookresearch/moco as one of ours."""

# No `from __future__ import annotations`: tyro reads the annotations.

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import Positional, arg

from ..engine import checkpoint
from ..engine.settings import Settings
from ..models.moco_checkpoint import import_moco
from .exit_code import exit_code


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast import-moco` with these arguments and returns its exit code."""
    return exit_code("import-moco", lambda: tyro.cli(_import_moco, prog="ssl-fast import-moco", args=arguments))


def _import_moco(path: Annotated[Positional[Path], arg(metavar="FILE")], output: Path, data: str = "imagenet") -> None:
    """Make a checkpoint of one of facebookresearch/moco, for ssl-fast eval and ssl-fast export.

    Args:
        path: A checkpoint that main_moco.py wrote.
        output: Where to write.
        data: What it was trained on, e.g. imagenet:FOLDER.
    """
    contents = import_moco(path)
    if output.exists():
        raise FileExistsError(f"output: expected a new name, {output} is there")
    # What only the going run has is not in such a file.
    run: dict[str, Any] = dict.fromkeys(checkpoint.KEYS)
    run |= {"images": 0, "step": 0, "history": [], "best": -math.inf, "rng": [], "totals": torch.zeros(2)}
    run |= {"settings": dataclasses.asdict(Settings()), "data": data}
    checkpoint.save(output, {**run, **contents, "recipe": dataclasses.asdict(contents["recipe"])})
    print(f"ssl-fast eval {output} --data {data if ':' in data else f'{data}:FOLDER'}")
