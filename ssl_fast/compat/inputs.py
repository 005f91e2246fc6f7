"""What the libraries take and our functions do not: tensors of one element for numbers, rows of several types."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def scalar(value: Any) -> Any:
    """A tensor of one element as a 0-D one of a float type, with its gradient; anything else as it is."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        return value
    return value.reshape(()) if value.is_floating_point() else value.reshape(()).float()


def one_dtype(*rows: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest of their types: under autocast the outputs of two networks may differ."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in rows))
    return tuple(x.to(dtype) for x in rows)
