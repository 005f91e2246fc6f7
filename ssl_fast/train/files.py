"""Files that are whole or not there: written beside their place, synced, renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PART = ".ssl-fast-part"  # how the name of an unfinished file ends


@contextmanager
def replacing(path: str | Path) -> Iterator[Any]:
    """A binary file to write; takes the place of `path` when the block ends, and never when it fails.

    The folder is made where it is missing. After an error or a crash the old file is still whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False)  # noqa: SIM115
    try:
        with part:
            # Temporary files are for their owner alone; this one becomes an ordinary file.
            os.fchmod(part.fileno(), 0o666 & ~_umask())
            yield part
            part.flush()
            os.fsync(part.fileno())
        os.replace(part.name, path)
    except BaseException as error:
        os.unlink(part.name)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk's message names no file
        raise
    # The rename itself is on disk only when the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_tensors(path: Path) -> Any:
    """What torch.save wrote, its tensors on the CPU; no code in the file is run. Raises ValueError for another file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for files that are not its own
        raise ValueError(f"{path}: expected a checkpoint, cannot be read ({type(error).__name__})") from error


def remove_parts(folder: Path) -> None:
    """Removes the unfinished files that a killed process left in the folder."""
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
