"""What annotations share. Only type checkers read this: import it under TYPE_CHECKING."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch.distributed as dist
from torch import Tensor

from .parallel.group import Ring

Scalar: TypeAlias = float | Tensor  # a tensor is 0-D and may get a gradient
Group: TypeAlias = dist.ProcessGroup | Ring | None
# A loss, or with return_stats (loss, ContrastiveStats): Any, as a union would have to be narrowed at each call.
Loss: TypeAlias = Tensor | Any
Ids: TypeAlias = tuple[Tensor | None, Tensor | None]  # of the rows on both sides
