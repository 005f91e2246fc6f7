"""`ssl-fast export`: a checkpoint's encoder as a file for other programs."""

# No `from __future__ import annotations`: tyro reads the annotations.

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from ..engine import checkpoint
from ..engine.export_formats import Format, export, how_to_load
from .exit_code import exit_code


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast export` with these arguments and returns its exit code."""
    return exit_code("export", lambda: tyro.cli(_export, prog="ssl-fast export", args=arguments))


def _export(path: Annotated[Positional[Path], arg(metavar="CHECKPOINT")], format: Format, output: Path) -> None:
    """Write a checkpoint's encoder as a file for other programs, and print how to load it.

    Args:
        path: A checkpoint (last.pt, best.pt) that ssl-fast train wrote.
        format: torchvision, timm: a state dict; safetensors; onnx; moco: the run for facebookresearch/moco.
        output: Where to write.
    """
    contents = checkpoint.load(path)
    if output.exists() and output.samefile(path):
        raise ValueError(f"output: expected another file than the checkpoint, got {output}")
    export(contents, format, output)
    print(how_to_load(contents, format, output))
