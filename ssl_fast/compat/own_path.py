"""One warning where an option has no fused form, so that the library's own code runs."""

from __future__ import annotations

import functools
import warnings


@functools.cache
def say_own_path(library: str, option: str) -> None:
    """Warns once of each option that `library`'s own code computes."""
    message = f"ssl_fast.compat.{library}: {option} has no fused form, {library}'s own code runs"
    warnings.warn(message, stacklevel=3)
