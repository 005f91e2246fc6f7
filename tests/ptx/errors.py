"""How far results are from float64, as the comparators see it, whether within their bounds or not."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor

from tests.helpers import compare, evaluate, similarity_cases

from . import similarities


@contextmanager
def recorded() -> Iterator[dict[str, float]]:
    """Inside, the largest error of what is compared: of "loss" and "gradient", in units of the largest entry."""
    worst: dict[str, float] = defaultdict(float)

    def assert_close(got: Tensor, truth: Tensor, dtype: torch.dtype, kind: str, *arguments, **options) -> None:
        worst[kind] = max(worst[kind], _error(got, truth, options.get("scale", 0.0)))
        compare.assert_close(got, truth, dtype, kind, *arguments, **options)

    with ExitStack() as stack:
        for module in (evaluate, similarity_cases, similarities):
            stack.enter_context(mock.patch.object(module, "assert_close", assert_close))
        yield worst


def _error(got: Tensor, truth: Tensor, scale: float) -> float:
    """Where both are finite: the comparator itself looks at the other places."""
    got, truth = got.detach().double(), truth.detach().double()
    finite = got.isfinite() & truth.isfinite()
    if not finite.any():
        return 0.0
    largest = max(scale, truth[finite].abs().max().item())
    return (got - truth)[finite].abs().max().item() / largest if largest else 0.0
