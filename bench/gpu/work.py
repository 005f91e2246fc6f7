"""What the stage "times" measures: each Work becomes one row of rows.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class MissingLibraryError(Exception):
    """Why a row cannot be measured here, which is nobody's failure."""


class Work(NamedTuple):
    """about: what the row says of itself. measure: returns the rest of it: milliseconds, ratio, failed, ..."""

    about: dict[str, object]
    measure: Callable[[], dict]

    @property
    def key(self) -> str:
        return " ".join(str(x) if name == "work" else f"{name}={x}" for name, x in self.about.items())
