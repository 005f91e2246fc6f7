"""Runs a loss forward and backward and holds it to the float64 truth."""

import copy
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import ssl_fast
from ssl_fast import NegativeQueue, functional
from ssl_fast.formulas import rows
from tests.helpers import oracle
from tests.helpers.compare import BOUNDS, assert_close

MATRIX_UNITS = ("triton", "cuda")  # backends that multiply half types as they are
HALF_TYPES = {torch.float16, torch.bfloat16}


class Result(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]


def evaluate(operator, backend, arguments, temperature, wants=(), reduction="mean", upstream=None) -> Result:
    """The loss of `operator` on a backend, and the gradient of every argument named in `wants`.

    arguments: by name, tensors, a NegativeQueue, and options.
    temperature: a number or a 0-D tensor, which "temperature" in wants asks the gradient of.
    """
    leaves = {
        name: x.detach().requires_grad_(name in wants) if isinstance(x, Tensor) else x
        for name, x in {**arguments, "temperature": temperature}.items()
    }
    with ssl_fast.backend(backend):
        loss = getattr(functional, operator)(**leaves, reduction=reduction)
        wanted = [leaves[name] for name in wants]
        if not wanted:
            return Result(loss, {})
        gradient = None if upstream is None else upstream.to(loss)
        gradients = torch.autograd.grad(loss, wanted, gradient)
    return Result(loss.detach(), dict(zip(wants, gradients, strict=True)))


@contextmanager
def eager_code_of(backend: str):
    """What the eager code is, whose error half types may have: the reference, which computes in float32.

    For backends with matrix units it is the code that users have, every step of it in the half type.
    """
    upcast = rows.upcast
    if backend in MATRIX_UNITS:
        rows.upcast = lambda x: x
    try:
        yield
    finally:
        rows.upcast = upcast


def widened(x):
    """The same values in float64."""
    if isinstance(x, NegativeQueue):
        return copy.deepcopy(x).double()
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _dtypes(arguments) -> set[torch.dtype]:
    tensors = [x.queue if isinstance(x, NegativeQueue) else x for x in arguments.values()]
    return {x.dtype for x in tensors if isinstance(x, Tensor) and x.is_floating_point()}


def bound_dtype(own: torch.dtype, dtypes: set[torch.dtype], backend: str) -> torch.dtype:
    """Whose bound holds for a result in dtype `own` from inputs of several.

    Arithmetic is in float32 or wider, but for products of half types on matrix units.
    """
    if own in HALF_TYPES:
        return own
    if backend in MATRIX_UNITS and dtypes & HALF_TYPES:
        return min(dtypes & HALF_TYPES, key=str)
    return torch.float64 if dtypes == {torch.float64} else torch.float32


def row_norms(x: Tensor) -> Tensor:
    """max(|x|, EPS) of each row: the gradient times it has one scale for rows of any norm."""
    x = x.double()
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    return (largest * (x / largest).norm(dim=-1, keepdim=True)).clamp_min(1e-12)


def within_float16(x: Tensor, got: Tensor, *expected: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the rows x in float64, cut off where float16 ends if got, of which that is asked first, is float16.

    There a zero row, whose gradient is dU / EPS, saturates; any other has Inf, which a gradient scaler must see.
    """
    gradients = [gradient.double() for gradient in (got, *expected)]
    if got.dtype != torch.float16 or got.dim() == 0:
        return tuple(gradients)
    got, truth = gradients[:2]
    largest, of_zero_row = torch.finfo(torch.float16).max, ~x.any(-1, keepdim=True)
    infinite = got == truth.sign() * float("inf")
    assert not (infinite & of_zero_row & truth.isfinite()).any(), "the gradient of a zero row is not finite"
    # Between the two either may be, by the error of the gradient.
    assert (infinite | of_zero_row | ~(truth.abs() > 1.25 * largest)).all(), "a finite gradient beyond float16"
    assert not (got.isinf() & (truth.abs() < 0.8 * largest)).any(), "Inf for a gradient that float16 holds"
    return tuple(gradient.clamp(-largest, largest) for gradient in gradients)


def assert_agrees(
    operator, backend, arguments, temperature, wants=(), reduction="mean", upstream=None, with_eager=False, floor=0.0,
    rounded_logits=False,
):  # fmt: skip
    """Loss and gradients on `backend` against the float64 reference.

    with_eager: allow what the reference in the same dtype needs too; bfloat16 and float16 always do.
    floor: least scale of the gradients, in units of |1 / temperature| * (largest upstream gradient).
    rounded_logits: a similarity and its logit, of size |1 / temperature|, are each rounded in float32, whatever luck
    the reference has.
    Returns the result.
    """
    settings = {"wants": wants, "reduction": reduction, "upstream": upstream}
    result = evaluate(operator, backend, arguments, temperature, **settings)
    wide = {name: widened(x) for name, x in arguments.items()}
    truth = evaluate(operator, "reference", wide, widened(temperature), **settings)
    with eager_code_of(backend):
        eager = evaluate(operator, "reference", arguments, temperature, **settings)
    dtypes = _dtypes(arguments)
    first = next(iter(arguments.values())).dtype
    assert result.loss.dtype == (torch.float64 if first == torch.float64 else torch.float32)
    widen = with_eager or dtypes & HALF_TYPES
    # The loss has the accuracy of the coarsest input.
    coarsest = min(dtypes, key=lambda dtype: -torch.finfo(dtype).eps)
    scale = abs(1 / float(temperature))
    # Losses near 0 are differences of logits up to |s|: the truth itself is off by 1e-15 |s|, or 0.
    resolution = 1e-15 * scale / BOUNDS[coarsest].loss
    if backend == "reference" and dtypes != {torch.float64}:
        # It subtracts float32 logits; the kernels do not, and have every digit of a loss near 0.
        resolution = max(resolution, 1e-7 * scale / BOUNDS[coarsest].never)
    if rounded_logits and coarsest != torch.float64:
        resolution = max(resolution, 2**-23 * scale / BOUNDS[coarsest].loss)
    assert_close(result.loss, truth.loss, coarsest, "loss", eager.loss if widen else None, scale=resolution)
    largest = 1 / len(next(iter(arguments.values()))) if upstream is None else upstream.abs().max().item()
    for name, gradient in result.gradients.items():
        expected, of_eager = truth.gradients[name], eager.gradients[name]
        x = temperature if name == "temperature" else arguments[name]
        assert gradient.shape == x.shape
        assert gradient.dtype == x.dtype
        dtype = bound_dtype(gradient.dtype, dtypes, backend)
        if name == "temperature":
            total = 1.0 if upstream is None else upstream.abs().sum().item()
            # Where weights are rounded to a half type, equal ones are all rounded the same way.
            share = torch.finfo(dtype).eps / 2 / BOUNDS[dtype].gradient if dtype in HALF_TYPES else 0.1
            assert_close(gradient, expected, dtype, "gradient", of_eager, scale=share * scale**2 * total, name=name)
            continue
        gradient, expected, of_eager = (y * row_norms(x) for y in within_float16(x, gradient, expected, of_eager))
        assert_close(
            gradient,
            expected,
            dtype,
            "gradient",
            of_eager if widen else None,
            scale=floor * scale * largest,
            name=f"gradient of {name}",
            roundoff=torch.finfo(dtype).eps / 2 if backend in MATRIX_UNITS and dtype in HALF_TYPES else 0.0,
        )
    return result


def assert_stats(stats, expected: oracle.Rows, temperature: float, dtype: torch.dtype) -> None:
    """ContrastiveStats of inputs in `dtype` against the oracle's rows; near ties may fall either way."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for got, top in ((stats.top1, 1), (stats.top5, 5)):
        least, most = oracle.top_share(expected, temperature, top, tie=tolerance)
        assert least - 1e-6 <= got.item() <= most + 1e-6
        assert got.dtype == dtype
    positive, negative = oracle.mean_similarities(expected)
    assert stats.positive_similarity.item() == pytest.approx(positive, abs=tolerance)
    assert stats.negative_similarity.item() == pytest.approx(negative, abs=tolerance, nan_ok=True)
