"""What all losses do before and after their own formula: the choice of what runs."""

from __future__ import annotations

from torch import Tensor

from ..formulas.rows import upcast
from ..operators import backends


def runs_reference(operator: str, x: Tensor) -> bool:
    return backends.choose(operator, x.device.type) == "reference"


def as_computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half types as float32 for the CPU's kernels, which compute in it: a sum of gradients is then rounded once.

    On a GPU they stay what they are, for its matrix units.
    """
    return tuple(upcast(x) if backends.choose("similarity_lse", x.device.type) == "cpu" else x for x in tensors)
