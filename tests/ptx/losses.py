"""Checks of nt_xent, info_nce and the other losses: inputs by seed, the call, and the comparison with float64.

Each function takes the name of a kind (kinds.py) first and runs inside `launch.simulated`. The comparators and their
bounds are those of the tests of every other backend.
"""

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import NegativeQueue, functional
from tests.helpers import loss_cases, oracle
from tests.helpers.compare import assert_close
from tests.helpers.evaluate import assert_agrees, assert_stats, evaluate, widened
from tests.helpers.strategies import embeddings, lay_out, upstream

from .kinds import KINDS


class Inputs(loss_cases.Inputs):
    """loss_cases' inputs with other seeds and values, and a queue in a dtype of its own."""

    def __init__(self, kind: str, count: int, negatives: int, dim: int, layout: str, values: str, seed: int):
        super().__init__("cpu", count, negatives, dim, KINDS[kind].dtype, layout)
        self.keys, self.values, self.seed = KINDS[kind].keys, values, seed

    def rows(self, seed: int, *sizes: int) -> Tensor:
        sizes = sizes or (self.count,)
        flat = embeddings(torch.Size(sizes).numel(), self.dim, self.dtype, self.values, self.seed + seed)
        return lay_out(flat.view(*sizes, self.dim), self.layout)

    def queue(self) -> NegativeQueue:
        return NegativeQueue(self.negatives, self.dim, dtype=self.keys, seed=self.seed)


def loss(
    kind: str, case: str, count: int = 37, negatives: int = 75, dim: int = 40, temperature: float = 0.1,
    learnt: bool = False, reduction: str = "none", layout: str = "contiguous", values: str = "ordinary",
    statistics: bool = False, seed: int = 0,
) -> None:  # fmt: skip
    """A loss of loss_cases.ALL_CASES, forward and backward, and its statistics."""
    arguments = loss_cases.ALL_CASES[case].arguments(Inputs(kind, count, negatives, dim, layout, values, seed))
    operator, wide = loss_cases.operator_of(case), torch.promote_types(KINDS[kind].dtype, torch.float32)
    # Errors of products weigh more at small temperatures, and in few dimensions they do not cancel.
    ordinary = values == "ordinary" and layout == "contiguous" and abs(temperature) >= 0.1 and dim >= 16
    given = torch.tensor(temperature, dtype=wide) if learnt else temperature
    gradient = upstream(loss_cases.loss_rows(case, count), seed, "random") if reduction == "none" else None
    wants = [*loss_cases.gradients_of(case), *["temperature"] * learnt]
    # In TF32 a single row's loss is as good as that of eager code; all rows together are held to 2e-4 below.
    in_tf32 = KINDS[kind].precision == "tf32"
    # In one dimension the gradient is 0 but for rounding.
    floor = 1.0 if dim == 1 else 0.0 if ordinary else 0.1
    result = assert_agrees(
        operator, "triton", arguments, given, wants, reduction, gradient, with_eager=in_tf32 or not ordinary,
        floor=floor,
    )  # fmt: skip
    if in_tf32 and ordinary:
        exact = {name: widened(x) for name, x in arguments.items()}
        truth = evaluate(operator, "reference", exact, widened(given), reduction=reduction).loss
        assert abs(result.loss.double().mean() - truth.mean()) <= 2e-4 * truth.mean()
    if statistics:
        with ssl_fast.backend("triton"):
            found = getattr(functional, operator)(**arguments, temperature=given, return_stats=True)[1]
        check_statistics(kind, found, expected_rows(case, arguments, temperature), temperature)


def expected_rows(case: str, arguments: dict, temperature: float) -> oracle.Rows:
    """The oracle's losses and similarities of nt_xent and info_nce."""
    in_numpy = [
        None if x is None else (x.queue if isinstance(x, NegativeQueue) else x).double().numpy()
        for x in arguments.values()
    ]
    if case == "nt_xent":
        return oracle.nt_xent(*in_numpy, temperature)
    return oracle.info_nce(*in_numpy, temperature, as_they_are="queue" in case)


def check_statistics(kind: str, found, expected: oracle.Rows, temperature: float) -> None:
    tie = KINDS[kind].tie
    if tie < 1e-4:
        assert_stats(found, expected, temperature, torch.float64 if kind == "float64" else torch.float32)
        return
    for got, top in ((found.top1, 1), (found.top5, 5)):
        least, most = oracle.top_share(expected, temperature, top, tie)
        assert least - 1e-6 <= got.item() <= most + 1e-6, f"top-{top}: {got.item()}, expected {least} to {most}"
    means = oracle.mean_similarities(expected)
    for got, mean in zip((found.positive_similarity, found.negative_similarity), means, strict=True):
        assert abs(got.item() - mean) <= tie, f"mean similarity {got.item()}, expected {mean}"


def half_queries_beside_a_float32_queue(kind: str, dim: int = 128, temperature: float = 0.07) -> None:
    """MoCo under autocast: the loss is as near as the products of float32 are, whatever the dtype of the queries."""
    arguments = loss_cases.ALL_CASES["info_nce queue"].arguments(
        Inputs(kind, 40, 300, dim, "contiguous", "ordinary", 5)
    )
    wide = {name: widened(x) for name, x in arguments.items()}
    found = evaluate("info_nce", "triton", arguments, temperature, reduction="none").loss
    truth = evaluate("info_nce", "reference", wide, temperature, reduction="none").loss
    assert abs(found.double().mean() - truth.mean()) <= 1e-4 * truth.mean()
    # A row's loss has no other rows' rounding to cancel its own.
    assert_close(found, truth, torch.float32, "loss")


def equal_rows_tie(kind: str, case: str, dim: int = 40, count: int = 19) -> None:
    """All rows are equal: a key that equals the positive does not rank above it, however similarities are rounded."""
    one = embeddings(1, dim, KINDS[kind].dtype, "ordinary", dim)
    arguments = loss_cases.ALL_CASES[case].arguments(Inputs(kind, count, 33, dim, "contiguous", "ordinary", 0))
    arguments = {name: x if x is None else one.expand(x.shape).contiguous() for name, x in arguments.items()}
    with ssl_fast.backend("triton"):
        _, stats = getattr(functional, case.partition(" ")[0])(**arguments, temperature=0.1, return_stats=True)
    assert stats.top1.item() == stats.top5.item() == 1


def bad_rows(kind: str, case: str, bad: float, dim: int = 40) -> None:
    """NaN or Inf in one row: NaN wherever the reference has it, a finite wrong number nowhere."""
    arguments = loss_cases.ALL_CASES[case].arguments(Inputs(kind, 19, 33, dim, "contiguous", "ordinary", 0))
    first = next(iter(arguments.values()))
    first[2, 1] = bad
    names = loss_cases.gradients_of(case)
    operator = loss_cases.operator_of(case)
    results = []
    for backend in ("triton", "reference"):
        leaf = loss_cases.leaves(arguments, names)
        with ssl_fast.backend(backend):
            rows = getattr(functional, operator)(**leaf, temperature=0.1, reduction="none")
        gradients = torch.autograd.grad(rows.sum(), [leaf[name] for name in names])
        results.append([rows.detach(), *gradients])
    assert results[0][0].isnan().any()
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        assert not got.isinf().any()
