"""What the losses have in common as modules."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .. import checks
from ..parallel.group import check_group

if TYPE_CHECKING:
    from ..annotations import Group, Temperature


class LossModule(nn.Module):
    """The options that all losses share, checked once here.

    Args:
        temperature: a number of size 1e-8 to 1e8, a 0-D tensor or Parameter, which gets its gradient, or a module
            that returns one: `LearnableTemperature`.
        reduction: "mean", "sum" or "none".
        normalize: whether rows are normalised; False takes them as they are.
        return_stats: whether a call returns (loss, ContrastiveStats).
        group: None, or the process group (or `Ring`) over which the batch is spread (`ssl_fast.parallel`).
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ):
        super().__init__()
        checks.temperature(temperature)
        checks.reduction(reduction)
        checks.flags(normalize=normalize, return_stats=return_stats)
        if group is not None:
            check_group(group)
        self.temperature: Any = temperature  # a module is called by the function
        self.reduction = reduction
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    def _options(self, weights: Tensor | None) -> dict[str, Any]:
        """What every function takes."""
        return {
            "temperature": self.temperature,
            "reduction": self.reduction,
            "normalize": self.normalize,
            "weights": weights,
            "return_stats": self.return_stats,
            "group": self.group,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The group stays the same object: it stands for the processes and cannot be copied.
        memo[id(self.group)] = self.group
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        options = {name: value for name, value in self.__dict__.items() if name[0] != "_" and name != "training"}
        if options["group"] is None:
            del options["group"]
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
