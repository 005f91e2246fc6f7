"""Rows that are appended to a file of JSON lines one by one, so that whatever ends a process leaves what it found."""

from __future__ import annotations

import json
import os
from pathlib import Path

BAD = ("failed", "died")


class Journal:
    """path: the rows, each a line with its "key" and "outcome". marker: holds the key whose row is being made.

    A process that dies leaves the marker behind: `bury` makes a row of it. Several processes may append to one file,
    each with a marker of its own.
    """

    def __init__(self, path: Path, marker: Path):
        self.path, self.marker = Path(path), Path(marker)

    def begin(self, key: str) -> None:
        self.marker.write_text(key)

    def end(self, row: dict) -> None:
        """row: with "key" and "outcome"."""
        line = json.dumps(row) + "\n"
        # One write to a file opened for appending: lines of several processes do not mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self.marker.unlink(missing_ok=True)

    def bury(self, why: str, outcome: str = "died", **more) -> bool:
        """Makes a row of what a process that has ended left unfinished. Returns whether there was something."""
        if not self.marker.exists():
            return False
        self.end({"key": self.marker.read_text(), "outcome": outcome, "message": why, **more})
        return True

    def rows(self) -> list[dict]:
        return read(self.path)

    def keys(self) -> set[str]:
        return {row["key"] for row in self.rows()}


def read(path: Path) -> list[dict]:
    """The rows of a file; none where it is not there. A line that was cut off, by a full disk, is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
