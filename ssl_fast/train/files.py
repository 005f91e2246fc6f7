"""Files that are written whole or not at all, and read without running code that they may hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PART = ".ssl-fast-part"  # the ending of the name of an unfinished file


@contextmanager
def replacing(path: str | Path) -> Iterator[Any]:
    """Opens a binary file that takes the place of `path` when the block ends without an error.

    The file is written under another name in the same folder, synced to the disk and then renamed, so that after an
    error or a crash `path` is the old file or the new one, whole. The folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=PART, delete=False)  # noqa: SIM115
    try:
        with part:
            # Only its owner may read a temporary file; this one gets the permissions of a new file.
            os.fchmod(part.fileno(), 0o666 & ~_umask())
            yield part
            part.flush()
            os.fsync(part.fileno())
        os.replace(part.name, path)
    except BaseException as error:
        os.unlink(part.name)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # the message of a full disk would name no file
        raise
    # The rename is on the disk only once the folder is synced.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_tensors(path: Path) -> Any:
    """Reads what torch.save wrote, with tensors on the CPU, without running any code that the file may hold.

    Raises:
        ValueError: for any other file.
    """
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
    """Writes a text file in UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
