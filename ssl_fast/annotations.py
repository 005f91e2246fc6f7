"""Types that annotations share. Only type checkers read this module: import it under TYPE_CHECKING."""

from __future__ import annotations

from typing import TypeAlias, TypedDict

import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Unpack as Unpack  # of typing from Python 3.11 on

from .formulas.scalars import Scalar as Scalar
from .formulas.statistics import ContrastiveStats
from .parallel.group import Ring

Temperature: TypeAlias = float | Tensor | nn.Module  # a module returns a 0-D tensor
Group: TypeAlias = dist.ProcessGroup | Ring | None
LossAndStats: TypeAlias = tuple[Tensor, ContrastiveStats]
Loss: TypeAlias = Tensor | LossAndStats
Ids: TypeAlias = tuple[Tensor | None, Tensor | None]  # of the rows on both sides


class OptionsOfOneProcess(TypedDict, total=False):
    """Options of every loss, in the signatures that say what return_stats does to the result's type."""

    reduction: str
    normalize: bool
    weights: Tensor | None


class Options(OptionsOfOneProcess, total=False):
    """Those of a loss whose batch may be spread over processes."""

    group: Group
