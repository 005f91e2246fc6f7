"""What all losses do before and after their own formula: check what was asked for, choose what runs, reduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import checks
from ..formulas.rows import upcast
from ..formulas.scalars import inverse, on_device
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import repeated
from ..operators import backends, calls
from ..parallel.batch import batch_of

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Scalar


def runs_reference(operator: str, x: Tensor) -> bool:
    """Whether plain PyTorch computes this operator for tensors on the device of x."""
    return backends.choose(operator, x.device.type) == "reference"


def as_computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half types as float32 for the CPU's kernels, which compute in it: a sum of gradients is then rounded once.

    On a GPU the tensors stay what they are, for its matrix units.
    """
    return tuple(upcast(x) if backends.choose("similarity_lse", x.device.type) == "cpu" else x for x in tensors)


class Request:
    """What a caller wants of a loss besides its formula: the common options, checked.

    Args:
        x: (N, ...) one of the loss's arguments; row i is of image i.
        temperature: argument of the loss; not read where logit_scale is given.
        reduction, normalize, weights, return_stats, group: arguments of the loss.
        image_first: whether the losses of an image's views lie beside each other, and not a view below the other.
        logit_scale: 1 / temperature, where the caller has that.

    Attributes:
        scale: 1 / temperature, which the operators take. What follows a public call's checks takes it from here.
    """

    def __init__(
        self,
        x: Tensor,
        temperature: Any,
        reduction: str,
        normalize: bool,
        weights: Tensor | None,
        return_stats: bool,
        group: Group = None,
        image_first: bool = False,
        logit_scale: Scalar | None = None,
    ):
        self._temperature = None
        if logit_scale is None:
            self._temperature = checks.temperature(temperature, x.device)
            self.scale = inverse(self._temperature)
        else:
            checks.scale("logit_scale", logit_scale, x.device)
            self.scale = on_device(logit_scale if isinstance(logit_scale, Tensor) else float(logit_scale), x.device)
        checks.reduction(reduction)
        checks.flags(normalize=normalize, return_stats=return_stats)
        if weights is not None:
            checks.weights(weights, x)
        self.reduction, self.normalize, self.weights, self.return_stats = reduction, normalize, weights, return_stats
        self.image_first = image_first
        self.batch = batch_of(group, x)
        # An operator reduces its rows itself, unless they are weighted or spread over ranks: then `reduce` does.
        self.operator_reduces = weights is None and self.batch.alone
        self.operator_reduction = reduction if self.operator_reduces else "none"

    @property
    def temperature(self) -> Any:
        """The temperature as the caller gave it, for the reference; 1 / logit_scale where that was given."""
        return inverse(self.scale) if self._temperature is None else self._temperature

    def reduce(self, loss_rows: Tensor, counted: Tensor | None = None) -> Tensor:
        """The loss of `loss_rows`, (N,) or several for each image. counted: as for `formulas.sums.reduce`."""
        weights = repeated(self.weights, loss_rows.shape[0], self.image_first)
        return self.batch.reduce(loss_rows, self.reduction, weights, counted)

    def finished(self, loss: Tensor) -> Tensor:
        """The loss, from what an operator gave for `operator_reduction`, which leaves the rest to `reduce`."""
        return loss if self.operator_reduces else self.reduce(loss)

    def positive_loss(self, lse: Tensor, positive: Tensor, **options: Any) -> Tensor:
        """The loss of `operators.calls.positive_loss`."""
        return self.finished(calls.positive_loss(lse, positive, self.scale, self.operator_reduction, **options))

    def result(self, loss: Tensor, stats: ContrastiveStats | None) -> Loss:
        """What the loss returns."""
        return loss if stats is None else (loss, stats)

    def of_reference(
        self,
        function: Callable[..., Any],
        tensors: dict[str, Any],
        options: dict[str, Any],
        counted: Tensor | None = None,
    ) -> Loss:
        """The reference's loss; over several ranks the rank's part of the loss of all ranks' rows.

        Args:
            function: of `ssl_fast.reference`.
            tensors: its arguments that have a row an image.
            options: its other arguments.
            counted: over several ranks, the rows of this rank that the mean counts.
        """
        options = {**options, "normalize": self.normalize, "return_stats": self.return_stats}
        if self.batch.alone:
            loss: Loss = function(**tensors, **options, reduction=self.reduction, weights=self.weights)
            return loss
        result = function(**{name: self.batch.in_order(x) for name, x in tensors.items()}, **options, reduction="none")
        loss_rows, stats = result if self.return_stats else (result, None)
        return self.result(self.reduce(self.batch.own_rows(loss_rows, self.image_first), counted), stats)
