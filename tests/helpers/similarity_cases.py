"""The formulas of the similarity operators in plain PyTorch, and comparisons of the operators' functions with them."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_fast.kernels import pair_similarity, similarity_lse, similarity_softplus
from ssl_fast.kernels.engine.constants import HALF_UNIT
from tests.helpers.compare import assert_close
from tests.helpers.evaluate import bound_dtype, row_norms, within_float16
from tests.ptx.products import Products, to_tf32

ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL = range(4)
HALF_TYPES = (torch.bfloat16, torch.float16)


class Problem(NamedTuple):
    """Arguments of similarity_lse; b none: rows with each other."""

    a: Tensor
    b: Tensor | None
    ids_a: Tensor | None = None
    ids_b: Tensor | None = None
    mask: int = ALL
    normalize: tuple[bool, bool] = (True, True)
    columns: bool = False
    given_scale: float | Tensor = 10.0

    @property
    def scale(self) -> float:
        return float(self.given_scale)

    @property
    def split_scale(self) -> tuple[float, Tensor | None]:
        learnt = isinstance(self.given_scale, Tensor)
        return (1.0, self.given_scale) if learnt else (self.given_scale, None)

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {x.dtype for x in self.inputs}

    @property
    def inputs(self) -> list[Tensor]:
        return [self.a] if self.b is None else [self.a, self.b]


def unit_rows(x: Tensor, normalize: bool) -> Tensor:
    return x / norms_of(x) if normalize else x


def norms_of(x: Tensor) -> Tensor:
    """max(|x|, 1e-12), with a gradient, of rows whose squares the dtype may not hold."""
    largest = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return (largest * (x / largest).norm(dim=-1, keepdim=True)).clamp_min(1e-12)


def allowed(problem: Problem) -> Tensor:
    """(N, M): the pairs that count."""
    n, m = len(problem.a), len(problem.inputs[-1])
    not_self = torch.arange(n)[:, None] != torch.arange(m)
    if problem.mask == ALL:
        return torch.ones(n, m, dtype=torch.bool)
    if problem.mask == NOT_SELF:
        return not_self
    equal = problem.ids_a[:, None] == (problem.ids_a if problem.b is None else problem.ids_b)
    if problem.mask == IDS_DIFFER:
        return ~equal
    return equal & not_self if problem.b is None else equal


def exact_similarities(problem: Problem) -> Tensor:
    return similarities(problem, [x.double() for x in problem.inputs])


def similarities(problem: Problem, inputs: list[Tensor]) -> Tensor:
    u, v = (unit_rows(x, normalize) for x, normalize in zip((inputs[0], inputs[-1]), problem.normalize, strict=True))
    return u @ (u if problem.b is None else v).T


def differentiated(problem: Problem, wide: torch.dtype, outputs, gradients, extra: list[Tensor] = ()):
    """(outputs, gradients of inputs, scale and `extra`) of a formula computed in `wide`.

    In float64 it is the truth, whose gradients are not rounded to the inputs' dtype.
    """
    exact = wide == torch.float64
    leaves = [(x.double() if exact else x).detach().clone().requires_grad_() for x in problem.inputs]
    scale = torch.tensor(problem.scale, dtype=wide, requires_grad=True)
    extra = [x.detach().to(wide).clone().requires_grad_() for x in extra]
    x = similarities(problem, [leaf.to(wide) for leaf in leaves])
    results = outputs(x, scale, *extra)
    upstream = [g.to(wide) for g in gradients]
    found = torch.autograd.grad(
        results, [*leaves, scale, *extra], upstream, allow_unused=True, materialize_grads=True
    )  # fmt: skip
    return [result.detach() for result in results], found


def eager_products(problem: Problem) -> AbstractContextManager:
    """As eager code multiplies on a GPU: queries of a half type beside keys of another dtype in TF32 (table.kind)."""
    first, last = (x.dtype for x in (problem.inputs[0], problem.inputs[-1]))
    return Products(to_tf32) if first in HALF_TYPES and first != last else nullcontext()


def lse_formula(problem: Problem):
    keep = allowed(problem)

    def outputs(x, s):
        scores = (s * x).masked_fill(~keep, float("-inf"))
        return [scores.logsumexp(1), scores.logsumexp(0)][: 1 + problem.columns]

    return outputs


def assert_gradient(got, x, truth, eager, scale: float, name: str, dtypes: set) -> None:
    """As evaluate.assert_agrees compares: times the rows' norms, so that all have one scale."""
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    assert got.is_contiguous()
    norms = row_norms(x) if got.dim() == 2 else 1.0
    dtype = bound_dtype(got.dtype, dtypes, "triton")
    roundoff = torch.finfo(dtype).eps / 2 if dtype in HALF_TYPES else 0.0
    # Below its normal numbers a dtype has few digits.
    scale = max(scale, torch.finfo(got.dtype).tiny * float(torch.as_tensor(norms).max()))
    got, truth, eager = (value * norms for value in within_float16(x, got, truth, eager))
    assert_close(got, truth, dtype, "gradient", eager, scale=scale, name=name, roundoff=roundoff)


def coarsest(tensors) -> torch.dtype:
    """Whose bound holds."""
    return max((x.dtype for x in tensors), key=lambda dtype: torch.finfo(dtype).eps)


def check_lse(problem: Problem, upstream: list[Tensor], positive: Tensor | None = None):
    """The operator and its backward against the formula in float64. Returns the operator's result."""
    options = problem[2:5]
    scale = problem.split_scale
    result = similarity_lse.similarity_lse(
        *problem[:2], *options, *problem.normalize, problem.columns, *scale, positive
    )
    wide = torch.float64 if problem.a.dtype == torch.float64 else torch.float32
    upstream = [g.to(wide) for g in upstream]
    truth, exact = differentiated(problem, torch.float64, lse_formula(problem), upstream)
    with eager_products(problem):
        eager, of_eager = differentiated(problem, wide, lse_formula(problem), upstream)
    dtype = coarsest(problem.inputs)
    reach = abs(problem.scale) * max(1, exact_similarities(problem).abs().max().item())
    for got, expected, by_eager in zip(result[:2], truth, eager, strict=False):
        assert got.dtype == torch.float64
        assert_close(got, expected, dtype, "loss", by_eager, scale=0.1 * reach)
    assert problem.columns or result[1].numel() == 0
    column_gradient = upstream[1] if problem.columns else None
    largest = max(g.abs().max().item() for g in upstream)
    found = similarity_lse.similarity_lse_backward(
        upstream[0], column_gradient, *problem[:2], *options, *problem.normalize, *scale, result[3], True, True
    )
    for x, got, expected, by_eager, name in zip(problem.inputs, found, exact, of_eager, "ab", strict=False):
        assert_gradient(got, x, expected, by_eager, 0.1 * abs(problem.scale) * largest, name, problem.dtypes)
    check_scale(problem, found[2], exact[len(problem.inputs)], of_eager[len(problem.inputs)], upstream, dtype)
    return result


def check_scale(problem: Problem, got, expected, eager, upstream, dtype) -> None:
    if not isinstance(problem.given_scale, Tensor):
        assert got.shape == ()
        return
    total = sum(g.abs().sum().item() for g in upstream)
    reach = exact_similarities(problem).abs().max().item()
    share = torch.finfo(dtype).eps / 2 / 1e-4 if dtype in HALF_TYPES else 0.1
    assert got.dtype == problem.given_scale.dtype
    assert_close(got, expected, dtype, "gradient", eager, scale=share * total * max(reach, 1e-3))


def softplus_formula(problem: Problem):
    keep = allowed(problem._replace(mask=NOT_SELF))

    def outputs(x, s, bias):
        # Above 50 softplus(x) is x to the last digit of float64; far above, its exponential overflows.
        return [torch.nn.functional.softplus(s * x + bias, threshold=50).masked_fill(~keep, 0).sum(1)]

    return outputs


def check_softplus(problem: Problem, bias: Tensor, gradient: Tensor, positive: Tensor | None = None):
    """The operator and its backward against the formula in float64. Returns the operator's result."""
    normalize, scale = problem.normalize[0], problem.split_scale
    sums, ranks, kept = similarity_softplus.similarity_softplus(
        problem.a, problem.b, normalize, *scale, bias, positive
    )  # fmt: skip
    wide = torch.float64 if problem.a.dtype == torch.float64 else torch.float32
    gradient = gradient.to(wide)
    truth, exact = differentiated(problem, torch.float64, softplus_formula(problem), [gradient], [bias])
    with eager_products(problem):
        eager, of_eager = differentiated(problem, wide, softplus_formula(problem), [gradient], [bias])
    dtype = coarsest(problem.inputs)
    assert sums.dtype == wide
    assert sums.shape == (2, len(problem.a))
    assert_close(sums[0], truth[0], dtype, "loss", eager[0], scale=1e-30)
    found = similarity_softplus.similarity_softplus_backward(
        gradient, problem.a, problem.b, normalize, *scale, bias, sums, kept, True, True
    )
    # Sigmoids may all be nearly 0: the scale is that of the largest. The kernels multiply float16 rows by weights in
    # float16, HALF_UNIT times as large, in which sigmoids below its normal numbers have few digits or none.
    sigmoids = torch.sigmoid(problem.scale * exact_similarities(problem) + bias.double())
    in_float16 = any(x.dtype == torch.float16 for x in problem.inputs)
    digits = torch.finfo(torch.float16).tiny / HALF_UNIT.value if in_float16 else 0.0
    largest_gradient = gradient.abs().max().item()
    largest = largest_gradient * max(sigmoids.max().item(), digits)
    weights = (gradient.abs()[:, None] * sigmoids).clamp_min(largest_gradient * digits)
    for side, name in enumerate("ab"):
        # Weights of a half type that are equal are all rounded the same way, so the scale is that of their sum. It is
        # far above the gradient where the rows are nearly equal, since what lies along a row cancels.
        terms = weights.sum(1 - side).max().item() if dtype in HALF_TYPES else 0.1 * largest
        assert_gradient(
            found[side], problem.inputs[side], exact[side], of_eager[side], abs(problem.scale) * terms, name,
            problem.dtypes,
        )  # fmt: skip
    check_scale(problem, found[2], exact[2], of_eager[2], [largest * torch.ones_like(sigmoids)], dtype)
    assert found[3].dtype == bias.dtype
    total = (gradient.abs()[:, None] * sigmoids).sum().item()
    least = max(0.1 * total, torch.finfo(bias.dtype).tiny)
    bound = bound_dtype(bias.dtype, {x.dtype for x in (*problem.inputs, bias)}, "triton")
    row = torch.ones(1, 1)  # no zero row, whose gradient would saturate
    gradients = (x.view(1, 1) for x in (found[3], exact[3], of_eager[3].to(bias.dtype)))
    got, truth, eager = within_float16(row, *gradients)
    assert_close(got, truth, bound, "gradient", eager, scale=least, name="bias")
    return sums, ranks


def pairs_of(a: Tensor, b: Tensor, normalize=(True, True)) -> Tensor:
    return pair_similarity.pair_similarity(a, b, *normalize)


def check_ranks(problem: Problem, ranks: Tensor, positive: Tensor, rows_equal: list[Tensor]) -> None:
    """Counts may differ by near ties, but not by pairs that equal the positive's bit for bit.

    rows_equal: for rows, and for columns where they have ranks, which pairs (N, M) are equal to the row's positive.
    """
    x = exact_similarities(problem)
    sign, keep = (1 if problem.scale > 0 else -1), allowed(problem)
    tie = (1e-13 if problem.a.dtype == torch.float64 else 1e-6) * max(1.0, x.abs().max().item())
    assert ranks.dtype == torch.int64
    assert len(ranks) == len(rows_equal)
    for i, equal in enumerate(rows_equal):
        above = sign * (x - (positive[:, None] if i == 0 else positive[None, :]).double())
        least = (keep & ~equal & (above > tie)).sum(1 - i)
        most = (keep & ~equal & (above > -tie)).sum(1 - i)
        assert ((least <= ranks[i]) & (ranks[i] <= most)).all(), (least, ranks[i], most)


def equal_rows(x: Tensor) -> Tensor:
    """(N, N): which rows are equal, bit for bit."""
    return (x[None] == x[:, None]).all(-1)
