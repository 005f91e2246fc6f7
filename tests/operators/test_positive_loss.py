"""The losses of rows from log-sum-exps and positives, in one operator on the CPU, against plain formulas in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_fast.operators import calls
from tests.helpers.backends import only_compiled
from tests.helpers.compare import assert_close
from tests.helpers.strategies import seeds, temperatures


def formula(lse, positive, weights, in_denominator, mean_in_log, scale, reduction):
    logits = (1 if weights is None else weights) * positive * scale
    logits = logits[:, None] if positive.dim() == 1 else logits
    of_all = logits.logsumexp(1)
    added = torch.full_like(of_all, math.log(logits.shape[1])) if mean_in_log else of_all - logits.mean(1)
    of_all, added = (part.repeat(len(lse) // len(positive)) for part in (of_all, added))
    rows = torch.nn.functional.softplus(lse - of_all, threshold=700) if in_denominator else lse - of_all
    rows = rows + added
    return {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]


def inputs(count, directions, dtype, seed, weighted, scale, each=()):
    """Log-sum-exps from far below to far above their positives' logits, and -Inf of a row without negatives."""
    generator = torch.Generator().manual_seed(seed)
    positive = (2 * torch.rand(count, *each, generator=generator, dtype=torch.float64) - 1).to(dtype)
    gap = 30 * torch.randn(directions * count, generator=generator, dtype=torch.float64)
    lse = positive.double().view(count, -1)[:, 0].repeat(directions) * scale + gap
    lse[-1] = float("-inf")
    return lse, positive, (torch.rand(count, generator=generator).to(dtype) if weighted else None)


@only_compiled
@given(
    count=st.sampled_from([1, 2, 5, 300]),
    directions=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=seeds,
    each=st.sampled_from(["weighted", (), (1,), (2,), (7,)]),
    in_denominator=st.booleans(),
    mean_in_log=st.booleans(),
    temperature=temperatures,
    learnt=st.booleans(),
    reduction=st.sampled_from(["none", "mean", "sum"]),
)
def test_values_and_gradients(
    count, directions, dtype, seed, each, in_denominator, mean_in_log, temperature, learnt, reduction
):  # fmt: skip
    scale, weighted = 1 / temperature, each == "weighted"
    lse, positive, weights = inputs(count, directions, dtype, seed, weighted, scale, () if weighted else each)
    options = {"in_denominator": in_denominator, "mean_in_log": mean_in_log}
    if not in_denominator:
        lse[-1] = 0.0
    # What the kernels subtract: the scale rounded as theirs, in powers of two.
    rounded = calls.scores(torch.ones((), dtype=dtype), scale).item()
    results = []
    for exact in (False, True):
        s = torch.tensor(rounded if exact else scale, dtype=torch.float64, requires_grad=True)
        a, b = (x.clone().requires_grad_() for x in (lse, positive.double() if exact else positive))
        w = weights.double() if exact and weighted else weights
        if exact:
            loss = formula(a, b, w, scale=s, reduction=reduction, **options)
        else:
            given_ = s if learnt else scale
            loss = calls.positive_loss(a, b, given_, reduction, positive_weights=w, **options)
            assert loss.dtype == dtype
        wanted = [a, b, s] if learnt or exact else [a, b]
        upstream = torch.linspace(0.5, 1, loss.numel(), dtype=loss.dtype).view_as(loss)  # another for each row
        results.append([loss.detach(), *torch.autograd.grad(loss, wanted, upstream)])
    (got, *gradients), (truth, *expected) = results
    # The weighted similarity is rounded before it is scaled.
    largest = abs(scale) if weighted else 1e-3
    assert_close(got, truth, dtype, "loss", scale=largest * (len(lse) if reduction == "sum" else 1))
    share = {"none": 1.0, "sum": 1.0, "mean": 1 / len(lse)}[reduction]
    for name, x, y, floor in zip("lps", gradients, expected, (1.0, abs(scale), len(lse)), strict=False):
        assert_close(x, y, dtype, "gradient", scale=share * floor * (100 if weighted else 1), name=name)


@only_compiled
def test_nan_stays_where_it_is():
    lse, positive = torch.zeros(6, dtype=torch.float64), torch.tensor([0.1, float("nan"), 0.3])
    lse[5] = float("nan")
    rows = calls.positive_loss(lse, positive, 10.0, "none")
    assert rows.isnan().tolist() == [False, True, False, False, True, True]
    assert calls.positive_loss(lse, positive, 10.0, "mean").isnan()
    several = torch.tensor([[0.1, 0.2], [0.3, float("nan")], [0.2, 0.1]])
    for mean_in_log in (False, True):
        rows = calls.positive_loss(lse, several, 10.0, "none", mean_in_log=mean_in_log)
        assert rows.isnan().tolist() == [False, True, False, False, True, True]
    out_of_range = calls.positive_loss(lse[:3], positive.nan_to_num(), torch.tensor(0.0), "none")
    assert out_of_range.isnan().all()


@only_compiled
def test_it_is_what_other_devices_compute():
    """The plain PyTorch of the same function, which runs where tensors are not on the CPU."""
    results = []
    for dtype, weighted, in_denominator, each, mean_in_log in [
        (torch.float32, False, True, (), False),
        (torch.float64, True, False, (), False),
        (torch.float32, False, True, (3,), False),
        (torch.float64, False, False, (3,), True),
    ]:
        lse, positive, weights = inputs(40, 2, dtype, 0, weighted, 5.0, each)
        lse[-1] = 0.0
        options = {"positive_weights": weights, "in_denominator": in_denominator, "mean_in_log": mean_in_log}
        fused = calls.positive_loss(lse, positive, 5.0, "mean", **options)
        elsewhere = calls.positive_loss(*(x.to("meta") for x in (lse, positive)), 5.0, "none",
                                             in_denominator=in_denominator, mean_in_log=mean_in_log)  # fmt: skip
        assert (elsewhere.shape, elsewhere.dtype) == (lse.shape, dtype)
        plain = calls.composed_positive_loss(lse, positive, 5.0, "mean", **options)
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)
        results.append(fused)
    assert all(x.isfinite() for x in results)


LSE, P = torch.zeros(6, dtype=torch.float64), torch.zeros(3)


@only_compiled
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LSE.float(), P, None, True, False, 10.0, None, 0), ValueError, "lse: expected float64"),
        ((LSE[:5], P, None, True, False, 10.0, None, 0), ValueError, "lse: expected float64 of a multiple of 3 rows"),
        ((LSE[:0], P, None, True, False, 10.0, None, 0), ValueError, "lse: expected"),
        ((LSE, P[:0], None, True, False, 10.0, None, 0), ValueError, "positive: expected"),
        ((LSE, P.half(), None, True, False, 10.0, None, 0), TypeError, "positive: expected float32 or float64"),
        ((LSE, P, P[:2], True, False, 10.0, None, 0), ValueError, "weights: expected the shape"),
        ((LSE, P[:, None], P, True, False, 10.0, None, 0), ValueError, "weights: expected the shape of one positive"),
        ((LSE, P[None, None], None, True, False, 10.0, None, 0), ValueError, "positive: expected the shape"),
        ((LSE, P, None, True, False, 10.0, None, 3), ValueError, "reduction: expected 0, 1 or 2"),
    ],
)
def test_the_operator_itself_refuses_what_it_would_misread(arguments, error, message):
    with pytest.raises(error, match=message):
        torch.ops.ssl_fast.positive_loss(*arguments)
    with pytest.raises(error, match=message):
        torch.ops.ssl_fast.positive_loss_backward(torch.tensor(1.0), *arguments)


@only_compiled
@pytest.mark.parametrize(("gradient", "reduction"), [(torch.ones(6), 1), (torch.ones(5), 0), (torch.ones(()), 0)])
def test_the_backward_refuses_another_loss_s_gradient(gradient, reduction):
    with pytest.raises(ValueError, match="gradient: expected the shape of the loss of 6 rows"):
        torch.ops.ssl_fast.positive_loss_backward(gradient, LSE, P, None, True, False, 10.0, None, reduction)


@only_compiled
@pytest.mark.parametrize(("weights", "each"), [(None, ()), (torch.rand(5), ()), (None, (3,))])
def test_opcheck(weights, each):
    lse, positive = torch.randn(10, dtype=torch.float64, requires_grad=True), torch.rand(5, *each, requires_grad=True)
    scale = torch.tensor(5.0, requires_grad=True)
    for reduction in (0, 1):
        arguments = (lse, positive, weights, weights is None, bool(each), 1.0, scale, reduction)
        torch.library.opcheck(torch.ops.ssl_fast.positive_loss, arguments)
        gradient = torch.ones(10) if reduction == 0 else torch.tensor(1.0)
        backward = (gradient, *(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments))
        torch.library.opcheck(torch.ops.ssl_fast.positive_loss_backward, backward)
