"""Checks of similarity_lse, similarity_softplus, pair_similarity and class_similarity.

Each makes inputs by seed, calls the operator and compares with float64.
As losses.py, but with the comparators of tests/helpers/similarity_cases.py.
"""

import torch
from torch import Tensor

from ssl_fast.kernels import class_similarity, pair_similarity
from tests.helpers.compare import assert_close
from tests.helpers.similarity_cases import (
    IDS_DIFFER,
    Problem,
    allowed,
    assert_gradient,
    check_lse,
    check_ranks,
    check_softplus,
    coarsest,
    pairs_of,
    unit_rows,
)
from tests.helpers.strategies import embeddings, lay_out, upstream

from .kinds import KINDS


def _ids(count: int, seed: int) -> Tensor:
    """Ids that occur several times, some of them equal in their lower 32 bits."""
    ids = torch.randint(max(1, count // 3), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.where(ids % 2 == 0, ids // 2, ids // 2 + (1 << 40))


def _problem(
    kind: str, form: str, n: int, m: int, dim: int, mask: int, given, normalize, layout: str, values: str, seed: int
) -> Problem:
    dtype, symmetric = KINDS[kind].dtype, form == "with each other"
    a = lay_out(embeddings(n, dim, dtype, values, seed), layout)
    b = None if symmetric else lay_out(embeddings(m, dim, KINDS[kind].keys, values, seed + 1), layout)
    ids_a = _ids(n, seed) if mask >= IDS_DIFFER else None
    ids_b = _ids(m, seed + 1) if mask >= IDS_DIFFER and not symmetric else None
    of_both = (normalize[0], normalize[0]) if symmetric else normalize
    return Problem(a, b, ids_a, ids_b, mask, of_both, form == "both ways", given)


def _same(x: Tensor, y: Tensor) -> Tensor:
    """(rows of x, rows of y): which are equal, bit for bit."""
    return (x[:, None] == y[None]).all(-1)


def lse(
    kind: str, form: str, mask: int = 0, n: int = 37, m: int = 75, dim: int = 40, temperature: float = 0.1,
    learnt: bool = False, normalize: tuple[bool, bool] = (True, True), ranks: bool = False,
    layout: str = "contiguous", values: str = "ordinary", seed: int = 0,
) -> None:  # fmt: skip
    """similarity_lse; form: rows "with each other", against others "one way", or "both ways". ranks: m is n then."""
    given = torch.tensor(1 / temperature, dtype=torch.float64) if learnt else 1 / temperature
    m = n if ranks else m
    problem = _problem(kind, form, n, m, dim, mask, given, normalize, layout, values, seed)
    gradients = [upstream(len(problem.a), seed, "random"), upstream(m, seed + 1, "random")][: 1 + problem.columns]
    if not ranks:
        check_lse(problem, gradients)
        return
    other = problem.a.roll(1, 0) if problem.b is None else problem.b
    positive = pairs_of(problem.a, other)
    found = check_lse(problem, gradients, positive)[2]
    if KINDS[kind].tie < 1e-4:
        equal = [_same(other, problem.inputs[-1]), _same(problem.a, problem.a)]
        check_ranks(problem, found, positive, equal[: 1 + problem.columns])


def softplus(
    kind: str, n: int = 37, dim: int = 40, temperature: float = 0.1, bias: float = -1.0, learnt: bool = False,
    normalize: bool = True, ranks: bool = False, layout: str = "contiguous", values: str = "ordinary", seed: int = 0,
) -> None:  # fmt: skip
    """similarity_softplus."""
    given = torch.tensor(1 / temperature, dtype=torch.float64) if learnt else 1 / temperature
    problem = _problem(kind, "both ways", n, n, dim, 1, given, (normalize, normalize), layout, values, seed)
    problem = problem._replace(columns=False)
    positive = pairs_of(problem.a, problem.b) if ranks else None
    _, found = check_softplus(problem, torch.tensor(bias), upstream(n, seed, "random"), positive)
    if ranks and KINDS[kind].tie < 1e-4:
        check_ranks(problem, found, positive, [_same(problem.b, problem.b), _same(problem.a, problem.a)])


def pairs(
    kind: str, n: int = 37, dim: int = 40, normalize: tuple[bool, bool] = (True, True), layout: str = "contiguous",
    values: str = "ordinary", seed: int = 0,
) -> None:  # fmt: skip
    """pair_similarity."""
    problem = _problem(kind, "both ways", n, n, dim, 0, 1.0, normalize, layout, values, seed)
    inputs = problem.inputs
    wide = torch.promote_types(KINDS[kind].dtype, torch.float32)
    gradient = upstream(n, seed, "random").to(wide)

    def formula(arithmetic: torch.dtype):
        exact = arithmetic == torch.float64
        leaves = [(x.double() if exact else x).detach().clone().requires_grad_() for x in inputs]
        u, v = (unit_rows(x.to(arithmetic), on) for x, on in zip(leaves, normalize, strict=True))
        # Products of matrices, as the tiles have them: eager code on tensor cores rounds their operands too.
        similarities = (u[:, None] @ v[:, :, None]).flatten()
        return similarities.detach(), torch.autograd.grad(similarities, leaves, gradient.to(arithmetic))

    (truth, exact), (eager, by_eager) = formula(torch.float64), formula(wide)
    norms = [unit_rows(x.double(), on).norm(dim=1).max().item() for x, on in zip(inputs, normalize, strict=True)]
    got = pairs_of(*inputs, normalize)
    assert_close(got, truth, coarsest(inputs), "loss", eager, scale=0.1 * max(1e-3, *norms) ** 2)
    found = pair_similarity.pair_similarity_backward(gradient, *inputs, *normalize)
    dtypes, largest = {x.dtype for x in inputs}, gradient.abs().max().item()
    for x, result, expected, of_eager, name in zip(inputs, found, exact, by_eager, "ab", strict=True):
        assert_gradient(result, x, expected, of_eager, 0.1 * largest, name, dtypes)


def classes(kind: str, n: int = 37, dim: int = 40, layout: str = "contiguous", seed: int = 0) -> None:
    """class_similarity, whose backward ends in a kernel."""
    x = lay_out(embeddings(n, dim, KINDS[kind].dtype, "ordinary", seed), layout)
    labels = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(seed))
    same = (labels[:, None] == labels) & ~torch.eye(n, dtype=torch.bool)
    wide = torch.promote_types(x.dtype, torch.float32)
    gradient = upstream(n, seed, "random").to(wide)

    def formula(arithmetic: torch.dtype):
        leaf = (x.double() if arithmetic == torch.float64 else x).detach().clone().requires_grad_()
        u = unit_rows(leaf.to(arithmetic), True)
        sums = ((u @ u.T) * same).sum(1)
        return sums.detach(), torch.autograd.grad(sums, leaf, gradient.to(arithmetic))[0]

    (truth, exact), (eager, by_eager) = formula(torch.float64), formula(wide)
    sums, counts = class_similarity.class_similarity(x, labels)
    assert torch.equal(counts, same.sum(1))
    assert_close(sums, truth, x.dtype, "loss", eager, scale=1.0)
    found = class_similarity.class_similarity_backward(gradient, x, labels)
    assert_gradient(found, x, exact, by_eager, gradient.abs().max().item(), "x", {x.dtype})


def lse_without_pairs(kind: str) -> None:
    """Rows of which the mask leaves nothing: -Inf, no gradient, and no NaN elsewhere."""
    a, b = (embeddings(n, 40, KINDS[kind].dtype, "ordinary", n) for n in (70, 37))
    ids_a, ids_b = torch.zeros(70, dtype=torch.int64), torch.zeros(37, dtype=torch.int64)
    ids_a[5] = 1
    for scale in (10.0, 50.0):
        problem = Problem(a, b, ids_a, ids_b, IDS_DIFFER, columns=True, given_scale=scale)
        found = check_lse(problem, [upstream(70, 0, "random"), upstream(37, 1, "random")])
        assert torch.equal(found[0].isneginf(), ~allowed(problem).any(1))
