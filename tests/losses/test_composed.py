"""The losses composed of the primitive, on every backend: any input, statistics, options, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import LearnableTemperature, NegativeQueue, functional
from ssl_fast.formulas.sums import logsumexp, reduce, softplus, total
from tests.helpers.backends import device_of
from tests.helpers.evaluate import assert_agrees, widened
from tests.helpers.loss_cases import (
    ALL_CASES,
    CASES,
    OPERATOR_CASES,
    Inputs,
    arguments_of,
    every_case,
    gradients_of,
    leaves,
    loss_of,
    loss_rows,
    on_every_backend,
    on_every_fused_backend,
    operator_of,
)
from tests.helpers.strategies import dims, dtypes, embeddings, lay_out, layouts, seeds, temperatures, upstream

COMPOSED = [case for case in CASES if case not in OPERATOR_CASES]
every_composed = every_case(of=COMPOSED)


class _Drawn(Inputs):
    """Rows of one of the kinds that break a kernel's assumptions."""

    kind = "ordinary"

    def rows(self, seed, *sizes):
        sizes = sizes or (self.count,)
        flat = embeddings(torch.Size(sizes).numel(), self.dim, self.dtype, self.kind, self.seed + seed)
        return lay_out(flat.to(self.device).view(*sizes, self.dim), self.layout)


# Without rows of any norm: there the composition's error is the normalisation's, which other tests hold.
COMPOSED_KINDS = st.sampled_from(["ordinary", "equal", "duplicates", "zeros", "opposite", "one-hot"])


@on_every_backend
@every_composed
@given(st.integers(3, 40), dims, dtypes, COMPOSED_KINDS, layouts, temperatures, seeds, st.booleans())
def test_any_input(case, backend, count, dim, dtype, kind, layout, temperature, seed, per_row):
    inputs = _Drawn(backend, count, 2 * count + 1, dim, dtype, layout)
    inputs.kind, inputs.seed = kind, seed
    arguments = ALL_CASES[case].arguments(inputs)
    gradient = upstream(loss_rows(case, count), seed, "random") if per_row else torch.tensor(1.3)
    assert_agrees(
        operator_of(case), backend, arguments, temperature, gradients_of(case), "none" if per_row else "mean", gradient,
        with_eager=True, floor=1.0, rounded_logits=True,
    )  # fmt: skip


@on_every_backend
@every_composed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, -0.2, 0.01])
def test_several_blocks(case, backend, dtype, temperature):
    count = 40 if backend == "triton" else 210
    arguments = arguments_of(case, backend, count=count, negatives=2 * count + 3, dim=70, dtype=dtype)
    wants = [*gradients_of(case), "temperature"]
    t = torch.tensor(temperature, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    gradient = upstream(loss_rows(case, count), 0, "random")
    assert_agrees(operator_of(case), backend, arguments, t, wants, "none", gradient, True, 1.0, True)


@on_every_fused_backend
@every_case(of=CASES)
@pytest.mark.parametrize("temperature", [0.1, -0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_the_references(case, backend, temperature, dtype):
    arguments = arguments_of(case, backend, count=25, negatives=41, dim=6, dtype=dtype)
    stats = loss_of(case, backend, arguments, temperature, return_stats=True)[1]
    wide = {name: widened(x) for name, x in arguments.items()}
    expected = loss_of(case, "reference", wide, temperature, return_stats=True)[1]
    for got, truth in zip(stats, expected, strict=True):
        assert got.dtype == dtype
        assert got.item() == pytest.approx(truth.item(), abs=1e-6 if dtype == torch.float32 else 1e-12)


@on_every_fused_backend
@every_case(of=CASES)
def test_ties_go_to_the_positive(case, backend):
    """All rows equal: every candidate is as similar as the positive, and none is above it."""
    arguments = arguments_of(case, backend, count=30, negatives=50, dim=33)
    row = torch.nn.functional.normalize(embeddings(1, 33, torch.float32, "ordinary", 0), dim=1)[0]
    row = torch.nn.functional.normalize(row, dim=0).to(device_of(backend))
    for name, x in arguments.items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            arguments[name] = row.expand(x.shape)
        elif isinstance(x, NegativeQueue):
            x.queue.copy_(row)
    stats = loss_of(case, backend, arguments, 0.2, return_stats=True)[1]
    alone = 1 / 30 if operator_of(case) == "supcon" and "labels" in arguments and case != "supcon views" else 0
    assert stats.top1.item() == pytest.approx(1 - alone)
    assert stats.top5.item() == pytest.approx(1 - alone)


# Temperatures and options


@on_every_backend
@every_case(of=CASES)
def test_learnable_temperature(case, backend):
    arguments = arguments_of(case, backend)
    module = LearnableTemperature(init=0.2, max_scale=50.0)
    loss = loss_of(case, backend, arguments, module)
    assert torch.equal(loss, loss_of(case, backend, arguments, module().detach()))
    loss.backward()
    t = torch.tensor(module().item(), requires_grad=True)
    loss_of(case, backend, arguments, t).backward()
    assert module.log_scale.grad.item() == pytest.approx(-t.item() * t.grad.item(), rel=1e-4)


def test_learnable_temperature_stays_in_its_limits():
    module = LearnableTemperature(init=0.07, max_scale=100.0)
    assert module().item() == pytest.approx(0.07)
    with torch.no_grad():
        module.log_scale.fill_(9.0)
    assert module().item() == pytest.approx(0.01)
    module().backward()
    assert module.log_scale.grad.item() == pytest.approx(-0.01)  # it can come back
    loss = ssl_fast.NTXentLoss(LearnableTemperature())
    assert dict(loss.named_parameters()).keys() == {"temperature.log_scale"}
    for arguments, message in (
        ((0.0,), "init"),
        ((0.1, 0.0), "max_scale"),
        ((0.001, 100.0), "init: expected at least"),
    ):
        with pytest.raises(ValueError, match=message):
            LearnableTemperature(*arguments)
    with pytest.raises(TypeError, match="init: expected a number, got str"):
        LearnableTemperature("0.1")


@on_every_backend
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_logit_scale_gets_its_gradient(backend, name):
    a, b = torch.randn(2, 9, 5, device=device_of(backend))
    loss = {"clip": ssl_fast.ClipLoss, "siglip": ssl_fast.SigLipLoss}[name]()
    with ssl_fast.backend(backend):
        scale = torch.tensor(14.0, requires_grad=True)
        loss(a, b, scale).backward()
        temperature = torch.tensor(1 / 14, dtype=torch.float64, requires_grad=True)
        expected = getattr(functional, name)(a, b, temperature)
        assert loss(a, b, 14.0).item() == pytest.approx(expected.item(), rel=1e-6)
        expected.backward()
    assert scale.grad.item() == pytest.approx(-temperature.grad.item() / 14**2, rel=1e-5)
    with pytest.raises(ValueError, match="logit_scale: expected a number whose size"):
        loss(a, b, 0.0)


@on_every_backend
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e-9, -1e9])
@pytest.mark.parametrize("count", [1, 9])
def test_a_bad_logit_scale_tensor_is_never_a_finite_loss(backend, name, bad, count):
    a, b = torch.randn(2, count, 5, device=device_of(backend))
    with ssl_fast.backend(backend):
        rows = getattr(functional, name)(a, b, logit_scale=torch.tensor(bad), reduction="none")
    assert not rows.isfinite().any()


@on_every_backend
@pytest.mark.parametrize("name", ["nt_xent", "clip", "siglip"])
@pytest.mark.parametrize("end", [1e-8, 1e8, -1e-8])
def test_a_temperature_tensor_at_an_end_of_the_range(backend, name, end):
    """In float32 it lies a little beyond, and so does its inverse."""
    a, b = torch.randn(2, 9, 5, device=device_of(backend))
    with ssl_fast.backend(backend):
        assert getattr(functional, name)(a, b, torch.tensor(end), reduction="none").isfinite().all()


@on_every_backend
@pytest.mark.parametrize("bias", [-10.0, 0.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bias_of_siglip(backend, bias, dtype):
    device = device_of(backend)
    a, b = (embeddings(40, 9, dtype, "ordinary", i).to(device) for i in range(2))
    results = []
    for where, x, y in ((backend, a, b), ("reference", a.double(), b.double())):
        t = torch.tensor(bias, dtype=dtype, requires_grad=True)
        with ssl_fast.backend(where):
            loss = functional.siglip(x, y, 0.1, bias=t, reduction="sum")
        results.append((loss.item(), torch.autograd.grad(loss, t)[0]))
    (loss, gradient), (expected, truth) = results
    assert loss == pytest.approx(expected, rel=2e-6)
    assert gradient.dtype == dtype
    assert gradient.item() == pytest.approx(truth.item(), rel=1e-5)
    with ssl_fast.backend(backend):
        assert functional.siglip(a, b, 0.1, bias=torch.tensor(math.nan)).isnan()


@on_every_backend
@pytest.mark.parametrize("form", ["out", "in"])
def test_rows_without_a_positive(backend, form):
    device = device_of(backend)
    x = embeddings(6, 4, torch.float32, "ordinary", 0).to(device).requires_grad_()
    labels = torch.tensor([1, 1, 2, 3, 3, 4], device=device)
    with ssl_fast.backend(backend):
        loss_rows = functional.supcon(x, labels, 0.2, form=form, reduction="none")
        assert (loss_rows == 0).tolist() == [False, False, True, False, False, True]
        with_them, without = (
            functional.supcon(x, labels, 0.2, form=form, count_without_positive=count) for count in (True, False)
        )
        torch.testing.assert_close(with_them, loss_rows.sum() / 6)
        torch.testing.assert_close(without, loss_rows.sum() / 4)
        alone = functional.supcon(x, torch.arange(6, device=device), 0.2, form=form)
        assert alone == 0
        alone.backward()
    assert (x.grad == 0).all()


@on_every_backend
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_rows_as_they_are(backend, name):
    a, b = (3 * embeddings(30, 7, torch.float64, "ordinary", i).to(device_of(backend)) for i in range(2))
    assert_agrees(name, backend, {"a": a, "b": b, "normalize": False}, 0.7, ["a", "b"], with_eager=True)


@on_every_backend
@every_case(of=[case for case in COMPOSED if "queue" in case])
def test_the_queue_may_be_written_before_the_backward_pass(case, backend):
    results = []
    for write in (False, True):
        arguments = leaves(arguments_of(case, backend), gradients_of(case))
        loss = loss_of(case, backend, arguments)
        if write:
            arguments["negatives"].enqueue_(torch.ones(20, 17, device=device_of(backend)))
        loss.backward()
        results.append([arguments[name].grad for name in gradients_of(case)])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


def test_large_sums_do_not_depend_on_threads(one_and_two_threads):
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0))

    def run():
        return [total(x), softplus(x), reduce(x, "mean"), logsumexp(x[:99_999].view(-1, 3))]

    one, two = one_and_two_threads(run)
    for x, y in zip(one, two, strict=True):
        assert torch.equal(x, y)


# What an attack on the code found


@on_every_backend
def test_tilts_beyond_the_temperatures(backend):
    """temperature / beta and temperature / (1 + beta) are temperatures of the primitive."""
    z1, z2 = torch.randn(2, 8, 16, device=device_of(backend))
    for temperature, beta in ((0.5, 1e-10), (1e8, 0.5), (0.5, 1e3)):
        with ssl_fast.backend("reference"):
            expected = functional.hard_negative_nt_xent(z1.double(), z2.double(), temperature, beta=beta)
        with ssl_fast.backend(backend):
            assert functional.hard_negative_nt_xent(z1, z2, temperature, beta=beta).item() == pytest.approx(
                expected.item(), rel=1e-4
            )
            assert functional.hard_negative_nt_xent(z1, z2, torch.tensor(1.5e8), beta=2.0).isnan()
    with pytest.raises(ValueError, match="temperature: expected a number whose size"), ssl_fast.backend("auto"):
        functional.hard_negative_nt_xent(z1.cpu(), z2.cpu(), 1e-8, beta=1.0)


@on_every_fused_backend
def test_statistics_of_rows_that_nearly_agree(backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, generator=generator).expand(145, 8) + 0.01 * torch.randn(145, 8, generator=generator)
    x, labels = x.to(device_of(backend)), (torch.arange(145) % 2).to(device_of(backend))
    with ssl_fast.backend("reference"):
        expected = functional.supcon(x.double(), labels, return_stats=True)[1]
    with ssl_fast.backend(backend):
        stats = functional.supcon(x, labels, return_stats=True)[1]
        alone = functional.supcon(x[:9], torch.arange(9, device=x.device), return_stats=True)[1]
    assert stats.top1.item() == pytest.approx(expected.top1.item(), abs=0.03)
    assert alone.positive_similarity.isnan()


# Errors

X = torch.ones(6, 5)
ERRORS = [
    ("supcon", {"labels": None}, {}, ValueError, r"labels: expected integers for features without views"),
    ("supcon", {"labels": torch.ones(6)}, {}, TypeError, r"labels: expected integers, got torch.float32"),
    ("supcon", {"labels": torch.ones(5).int()}, {}, ValueError, r"labels: expected shape \(6,\) for features"),
    ("supcon", {}, {"form": "inside"}, ValueError, r"form: expected one of out, in, got 'inside'"),
    ("supcon", {"features": torch.ones(6)}, {}, ValueError, r"features: expected shape \(rows, dim\) or \(rows, views"),
    ("dcl", {"z1": torch.ones(1, 5), "z2": torch.ones(1, 5)}, {}, ValueError, r"z1: expected at least 2 rows"),
    ("dcl", {}, {"sigma": 0.0}, ValueError, r"sigma: expected a number of at least"),
    ("hard_negative_nt_xent", {}, {"beta": -1.0}, ValueError, r"beta: expected a number of at least 0.0"),
    ("hard_negative_nt_xent", {}, {"tau_plus": 1.0}, ValueError, r"tau_plus: .* below 1.0, got 1.0"),
    ("hard_negative_nt_xent", {}, {"beta": "1"}, TypeError, r"beta: expected a number, got str"),
    ("clip", {"b": torch.ones(5, 5)}, {}, ValueError, r"b: expected shape \(6, 5\) as a"),
    ("siglip", {}, {"bias": torch.ones(2)}, ValueError, r"bias: expected a number or a 0-D float tensor"),
    ("moco_v3", {"key2": torch.ones(6, 4)}, {}, ValueError, r"key2: expected shape \(6, 5\) as query1"),
    ("instance_discrimination", {"bank": torch.ones(4, 6)}, {}, ValueError, r"bank: expected 5 columns as features"),
    ("instance_discrimination", {"index": torch.ones(6)}, {}, TypeError, r"index: expected integers"),
    ("instance_discrimination", {"index": torch.arange(5)}, {}, ValueError, r"index: expected shape \(6,\)"),
    (
        "multi_positive_info_nce in batch",
        {"positives": X},
        {},
        ValueError,
        r"positives: expected shape \(rows, positives",
    ),
    (
        "multi_positive_info_nce shared",
        {"positives": torch.ones(5, 3, 5)},
        {},
        ValueError,
        r"positives: expected shape \(6, positives, 5\)",
    ),
    (
        "multi_positive_info_nce shared",
        {"negatives": torch.ones(6, 2, 5)},
        {},
        ValueError,
        r"negatives: expected shape",
    ),
    ("info_nce own", {"exclude": (torch.arange(6),) * 2}, {}, ValueError, r"exclude: expected None with negatives of"),
    (
        "info_nce in batch",
        {"exclude": (torch.arange(6), torch.arange(6))},
        {},
        ValueError,
        r"exclude: expected the same Tensor twice",
    ),
    (
        "info_nce shared",
        {"exclude": (torch.arange(6), torch.arange(3))},
        {},
        ValueError,
        r"exclude\[1\]: expected shape",
    ),
]


@pytest.mark.parametrize(("case", "changes", "options", "error", "message"), ERRORS)
def test_errors_name_the_argument(case, changes, options, error, message):
    arguments = {**arguments_of(case, count=6, negatives=4, dim=5), **changes, **options}
    with pytest.raises(error, match=message) as caught:
        loss_of(case, "auto", arguments)
    assert "\n" not in str(caught.value)
