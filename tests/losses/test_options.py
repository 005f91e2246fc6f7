"""The options that all losses share: normalize, weights, return_stats; on every backend, against the reference."""

import pytest
import torch

import ssl_fast
from ssl_fast import ContrastiveStats, MemoryBank, NegativeQueue, functional, reference
from tests.helpers.compare import BOUNDS, assert_close
from tests.helpers.evaluate import widened
from tests.helpers.loss_cases import (
    CLASSES,
    arguments_of,
    every_case,
    gradients_of,
    leaves,
    loss_of,
    loss_rows,
    on_every_backend,
    operator_of,
)  # fmt: skip


def in_float64(arguments: dict) -> dict:
    return {name: widened(x) for name, x in arguments.items()}


def loss_and_gradients(function, arguments, names, **options):
    inputs = leaves(arguments, names)
    loss = function(**inputs, **options)
    loss = loss[0] if isinstance(loss, tuple) else loss
    return [loss.detach(), *torch.autograd.grad(loss.sum(), [inputs[name] for name in names])]


def assert_all_close(got, wanted):
    """The loss first, then the gradients."""
    for place, (x, y) in enumerate(zip(got, wanted, strict=True)):
        assert_close(x, y, torch.float32, "gradient" if place else "loss")


@on_every_backend
@every_case()
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_as_they_are(backend, case, reduction):
    """normalize=False is the reference's formula of the rows themselves, values and gradients."""
    arguments, names = arguments_of(case, backend), gradients_of(case)
    # Rows of norms about 1, all different, so that neither a forgotten division nor a forgotten norm goes unnoticed.
    arguments = {
        name: x / x.norm(dim=-1).mean() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    options = {"normalize": False, "reduction": reduction, "return_stats": True, "temperature": 0.3}
    with ssl_fast.backend(backend):
        got = loss_and_gradients(getattr(functional, operator_of(case)), arguments, names, **options)
        _, stats = getattr(functional, operator_of(case))(**arguments, **options)
    expected = getattr(reference, operator_of(case))
    wide = in_float64(arguments)
    assert_all_close(got, loss_and_gradients(expected, wide, names, **options))
    for x, y in zip(stats, expected(**wide, **options)[1], strict=True):
        torch.testing.assert_close(x.double(), y.double(), rtol=1e-4, atol=1e-5)


@on_every_backend
@every_case()
def test_weights(backend, case):
    """Each image's losses times its weight; their mean is divided by the sum of the weights."""
    count = 30
    arguments, names = arguments_of(case, backend, count=count), gradients_of(case)
    weights = torch.linspace(0.1, 3.0, count, dtype=torch.float64).to(next(iter(arguments.values())).device)
    rows = loss_of(case, backend, arguments, reduction="none")
    views = loss_rows(case, count) // count
    of_rows = weights.repeat_interleave(views) if case.startswith("supcon") else weights.repeat(views)
    weighted = rows.double() * of_rows
    wanted = {"none": weighted, "sum": weighted.sum(), "mean": weighted.sum() / of_rows.sum()}
    for reduction, value in wanted.items():
        loss = loss_of(case, backend, arguments, reduction=reduction, weights=weights)
        assert loss.dtype == rows.dtype
        torch.testing.assert_close(loss.double(), value, rtol=BOUNDS[torch.float32].gradient, atol=1e-12)
    with ssl_fast.backend(backend):
        function = getattr(functional, operator_of(case))
        got = loss_and_gradients(function, arguments, names, temperature=0.1, weights=weights)
    expected = getattr(reference, operator_of(case))
    assert_all_close(got, loss_and_gradients(expected, in_float64(arguments), names, temperature=0.1, weights=weights))


@pytest.mark.parametrize("operator", CLASSES)
def test_modules_return_statistics_and_take_weights(operator):
    case = {"info_nce": "info_nce in batch", "multi_positive_info_nce": "multi_positive_info_nce in batch"}
    arguments = arguments_of(case.get(operator, operator))
    weights = torch.rand(30)
    loss, stats = CLASSES[operator](0.2, return_stats=True)(**arguments, weights=weights)
    wanted, wanted_stats = getattr(functional, operator)(
        **arguments, temperature=0.2, weights=weights, return_stats=True
    )
    assert isinstance(stats, ContrastiveStats)
    assert torch.equal(loss, wanted)
    for x, y in zip(stats, wanted_stats, strict=True):
        assert torch.equal(x, y)


def test_weights_are_checked():
    z = torch.randn(2, 6, 5)
    for bad, message in (
        (torch.rand(12), r"weights: expected shape \(6,\), one a row, got \(12,\)"),
        (torch.ones(6, dtype=torch.int64), "weights: expected float32, float64, bfloat16 or float16, got torch.int64"),
        ([1.0] * 6, "weights: expected a Tensor, got list"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            functional.nt_xent(*z, weights=bad)


def test_rows_that_do_not_count_have_no_part_in_a_weighted_mean():
    features, labels = torch.randn(6, 5), torch.tensor([0, 0, 1, 2, 2, 3])
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0, 3.0, 5.0])
    rows = functional.supcon(features, labels, reduction="none")
    loss = functional.supcon(features, labels, weights=weights, count_without_positive=False)
    torch.testing.assert_close(loss, (rows * weights).sum() / 7)  # the third and the last have no positive
    alone = functional.supcon(features, torch.arange(6), weights=weights, count_without_positive=False)
    assert alone == 0


def test_length():
    assert len(NegativeQueue(7, 4)) == 7
    assert len(MemoryBank(9, 4)) == 9
