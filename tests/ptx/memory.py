"""Fresh memory that shows when it is read before it is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor


def _poisoned(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x.fill_(float("nan"))
    return x.fill_(-123456789) if x.dtype in (torch.int32, torch.int64) else x


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """torch.empty and Tensor.new_empty return NaN, integers a number that no kernel writes."""
    empty, new_empty = torch.empty, Tensor.new_empty
    with (
        mock.patch.object(torch, "empty", lambda *sizes, **options: _poisoned(empty(*sizes, **options))),
        mock.patch.object(Tensor, "new_empty", lambda x, *sizes, **options: _poisoned(new_empty(x, *sizes, **options))),
    ):
        yield
