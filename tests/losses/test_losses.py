"""What all losses share, on every backend: autograd, determinism, errors, torch.compile, reductions."""

import inspect
import math

import pytest
import torch

import ssl_fast
from ssl_fast import NegativeQueue
from tests.helpers.backends import INTERPRETED, device_of
from tests.helpers.evaluate import assert_agrees, evaluate, widened
from tests.helpers.loss_cases import (
    CASES,
    CLASSES,
    OPERATOR_CASES,
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
from tests.helpers.strategies import LAYOUTS, upstream

REDUCTIONS = ["none", "mean", "sum"]
# Several blocks of rows, of negatives and of dimensions, ragged all.
LARGE = {"count": 80, "negatives": 150, "dim": 70} if INTERPRETED else {"count": 230, "negatives": 1300, "dim": 70}


def large(case):
    return LARGE | ({"count": 8 if INTERPRETED else 30, "negatives": 230} if case == "info_nce own" else {})


# Autograd


@on_every_backend
@every_case()
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_upstream_gradient_of_a_scalar(case, backend, reduction):
    arguments = arguments_of(case, backend)
    gradient = torch.tensor(-3.7)
    temperature = torch.tensor(0.15)
    wants = [*gradients_of(case), "temperature"]
    assert_agrees(operator_of(case), backend, arguments, temperature, wants, reduction, gradient, with_eager=True)


@on_every_backend
@every_case()
def test_gradients_only_where_asked_for(case, backend):
    names = gradients_of(case)
    full = evaluate(operator_of(case), backend, arguments_of(case, backend), 0.1, names).gradients
    for wanted in names:
        arguments = leaves(arguments_of(case, backend), [wanted])
        loss_of(case, backend, arguments).backward()
        for name in names:
            if name == wanted:
                torch.testing.assert_close(arguments[name].grad, full[name], rtol=1e-6, atol=1e-9)
            else:
                assert arguments[name].grad is None


@on_every_backend
@every_case()
def test_no_graph_without_need(case, backend):
    arguments = arguments_of(case, backend)
    assert not loss_of(case, backend, arguments).requires_grad
    arguments = leaves(arguments, gradients_of(case))
    with torch.no_grad():
        without = loss_of(case, backend, arguments)
    with torch.inference_mode():
        inference = loss_of(case, backend, arguments)
    assert not without.requires_grad
    assert torch.equal(without, loss_of(case, backend, arguments).detach())
    assert torch.equal(without, inference)


@on_every_backend
@every_case()
def test_stats_have_no_gradient(case, backend):
    arguments = leaves(arguments_of(case, backend), gradients_of(case))
    loss, stats = loss_of(case, backend, arguments, return_stats=True)
    assert loss.requires_grad
    assert not any(x.requires_grad for x in stats)
    assert torch.equal(loss, loss_of(case, backend, arguments))


@on_every_backend
@every_case()
def test_backward_twice_adds_the_same(case, backend):
    arguments = leaves(arguments_of(case, backend), gradients_of(case))
    loss = loss_of(case, backend, arguments)
    loss.backward(retain_graph=True)
    first = {name: arguments[name].grad.clone() for name in gradients_of(case)}
    loss.backward()
    for name, gradient in first.items():
        assert torch.equal(arguments[name].grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@on_every_backend
@every_case()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_keep_their_bits(case, backend, layout):
    arguments = arguments_of(case, backend, layout=layout)
    tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    tensors += [x.queue for x in arguments.values() if isinstance(x, NegativeQueue)]
    temperature, gradient = torch.tensor(0.2), upstream(loss_rows(case, 30), 0, "random")
    watched = [*tensors, temperature, gradient]
    before = [x.clone() for x in watched]
    versions = [x._version for x in watched]
    wants = [*gradients_of(case), "temperature"]
    evaluate(operator_of(case), backend, arguments, temperature, wants, "none", gradient)
    assert [x._version for x in watched] == versions
    for now, then in zip(watched, before, strict=True):
        assert torch.equal(now, then)


@on_every_backend
@every_case()
@pytest.mark.parametrize("kind", ["expanded", "strided", "one column of two"])
def test_strides_of_the_upstream_gradient(case, backend, kind):
    rows = loss_rows(case, 30)
    plain = upstream(rows, 0, "random")
    gradient = {
        "one column of two": torch.stack([plain, plain + 1], 1)[:, 0],
        "strided": plain.repeat_interleave(2)[::2],
        "expanded": torch.tensor(0.7).expand(rows),
    }[kind]
    got, expected = (
        evaluate(operator_of(case), backend, arguments_of(case, backend), 0.1, gradients_of(case), "none", g)
        for g in (gradient, gradient.contiguous())
    )
    for name, value in expected.gradients.items():
        # PyTorch's own functions round a strided row as they like.
        tolerance = {"rtol": 0, "atol": 0} if case in OPERATOR_CASES else {"rtol": 1e-5, "atol": 1e-8}
        torch.testing.assert_close(got.gradients[name], value, **tolerance)


@on_every_fused_backend
@every_case(but=("dcl weighted",))  # its weights count as constants
@pytest.mark.parametrize("temperature", [0.02] if INTERPRETED else [0.3, -0.4, 0.02])
def test_gradcheck(case, backend, temperature):
    arguments = arguments_of(case, backend, count=5, negatives=4, dim=3, dtype=torch.float64)
    names = gradients_of(case)
    t = torch.tensor(temperature, dtype=torch.float64, device=device_of(backend), requires_grad=True)

    def loss(t, *tensors):
        return loss_of(case, backend, {**arguments, **dict(zip(names, tensors, strict=True))}, t, "none")

    assert torch.autograd.gradcheck(loss, (t, *leaves(arguments, names).values())[: 1 + len(names)])


@on_every_fused_backend
@every_case()
@pytest.mark.parametrize("dim", [17, 300])  # wide rows may take library products, which autocast reaches
def test_autocast_around_a_call_changes_nothing(case, backend, dim):
    results = []
    for enabled in (False, True):
        arguments = leaves(arguments_of(case, backend, count=12, dim=dim), gradients_of(case))
        with torch.autocast(device_of(backend), torch.bfloat16, enabled=enabled):
            loss_of(case, backend, arguments).backward()
        results.append([arguments[name].grad for name in gradients_of(case)])
    for with_it, without in zip(*results, strict=True):
        assert torch.equal(with_it, without)


@on_every_fused_backend
@every_case()
def test_second_derivative_is_an_error(case, backend):
    arguments = leaves(arguments_of(case, backend), gradients_of(case))
    inputs = [arguments[name] for name in gradients_of(case)]
    gradients = torch.autograd.grad(loss_of(case, backend, arguments), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradients[0].sum().backward()


@on_every_fused_backend
@every_case()
def test_forward_mode_is_an_error(case, backend):
    # Without a kernel of its own it would be a silent zero.
    arguments = arguments_of(case, backend)
    for name in gradients_of(case):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
            with pytest.raises(RuntimeError, match="jvp is not implemented"):
                loss_of(case, backend, {**arguments, name: dual})


# Temperature and reductions


@on_every_backend
@every_case()
def test_number_and_tensor_temperature_agree(case, backend):
    arguments = arguments_of(case, backend)
    results = [
        evaluate(operator_of(case), backend, arguments, t, gradients_of(case)) for t in (0.25, torch.tensor(0.25))
    ]
    assert torch.equal(results[0].loss, results[1].loss)
    for name, gradient in results[0].gradients.items():
        assert torch.equal(gradient, results[1].gradients[name])


@on_every_backend
@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_temperature_gradient_has_its_dtype(case, backend, dtype):
    t = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))
    loss_of(case, backend, arguments_of(case, backend), t).backward()
    truth = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    wide = {name: widened(x) for name, x in arguments_of(case).items()}
    loss_of(case, "reference", wide, truth).backward()
    assert t.grad.dtype == dtype
    assert t.grad.item() == pytest.approx(truth.grad.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


@on_every_backend
@every_case()
def test_reductions_are_of_the_rows(case, backend):
    arguments = arguments_of(case, backend)
    rows, mean, total = (loss_of(case, backend, arguments, 0.1, reduction) for reduction in REDUCTIONS)
    assert rows.shape == (loss_rows(case, 30),)
    assert mean.shape == total.shape == ()
    torch.testing.assert_close(mean, rows.mean())
    torch.testing.assert_close(total, rows.sum())


@on_every_backend
@every_case()
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_is_the_function(case, backend, reduction):
    arguments = arguments_of(case, backend)
    of_class = inspect.signature(CLASSES[operator_of(case)]).parameters
    options = {name: value for name, value in arguments.items() if name in of_class}
    tensors = {name: value for name, value in arguments.items() if name not in options}
    module = CLASSES[operator_of(case)](temperature=0.3, reduction=reduction, **options)
    with ssl_fast.backend(backend):
        assert torch.equal(module(**tensors), loss_of(case, backend, arguments, 0.3, reduction))
    for name, value in {"temperature": 0.3, "reduction": reduction, **options}.items():
        assert f"{name}={value!r}" in repr(module)


# The same bits


@on_every_fused_backend
@every_case()
@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_bits_at_any_thread_count(case, backend, temperature, dtype, one_and_two_threads):
    arguments = arguments_of(case, backend, dtype=dtype, **large(case))
    t = torch.tensor(temperature)
    gradient = upstream(loss_rows(case, large(case)["count"]), 0, "random")
    wants = [*gradients_of(case), "temperature"]

    def run():
        result = evaluate(operator_of(case), backend, arguments, t, wants, "none", gradient)
        stats = loss_of(case, backend, arguments, t, return_stats=True)[1]
        return [result.loss, *result.gradients.values(), *stats]

    for one, two, again in zip(*one_and_two_threads(run), run(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(two, again)


# Bad values


@on_every_backend
@every_case()
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_a_bad_entry_is_never_a_finite_loss(case, backend, bad, temperature):
    for name in gradients_of(case):
        arguments = arguments_of(case, backend, **large(case))
        place = (205 % len(arguments[name]), *(2,) * (arguments[name].dim() - 2), 5)
        arguments[name][place] = bad
        leaf = leaves(arguments, gradients_of(case))
        loss = loss_of(case, backend, leaf, temperature, "none")
        loss.sum().backward()
        expected = loss_of(case, "reference", arguments, temperature, "none").isnan()
        assert expected.any()
        assert torch.equal(loss.isnan(), expected)
        assert not leaf[name].grad[place[0]].isfinite().any()


@on_every_backend
@every_case()
@pytest.mark.parametrize(
    ("dtype", "integer", "bits"),
    [
        (torch.float32, torch.int32, 0x7FC00001),
        (torch.float32, torch.int32, -0x2FFFF1),
        (torch.float64, torch.int64, 0x7FF8000000000001),
    ],
)
def test_a_nan_with_any_bits_is_never_a_finite_loss(case, backend, dtype, integer, bits):
    # exp2 works on the bits of its argument.
    bad = torch.tensor([bits], dtype=integer).view(dtype)
    assert bad.isnan()
    for name in gradients_of(case):
        arguments = arguments_of(case, backend, dtype=dtype)
        arguments[name][..., min(5, arguments[name].shape[-2] - 1), 3] = bad
        assert loss_of(case, backend, arguments, reduction="none").isnan().any()
        assert loss_of(case, backend, arguments).isnan()


@on_every_backend
@every_case()
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, 1e-9, 1e9, -1e-30])
def test_a_bad_temperature_tensor_is_never_a_finite_loss(case, backend, bad):
    # Its value is not read before the kernel, which would wait for a device.
    loss = loss_of(case, backend, arguments_of(case, backend), torch.tensor(bad), "none")
    assert not loss.isfinite().any()


def wrong(case, **changes):
    arguments = arguments_of(case, count=6, negatives=4, dim=5)
    return {**arguments, **changes}


ONE, TWO = "z1", "z2"
ERRORS = [
    ("nt_xent", {TWO: torch.ones(5, 5)}, {}, ValueError, r"z2: expected shape \(6, 5\) as z1, got \(5, 5\)"),
    ("nt_xent", {TWO: torch.ones(6, 4)}, {}, ValueError, r"z2: expected shape \(6, 5\) as z1, got \(6, 4\)"),
    ("nt_xent", {ONE: torch.ones(5)}, {}, ValueError, r"z1: expected shape \(rows, dim\), got \(5,\)"),
    ("nt_xent", {TWO: torch.ones(6, 5, 1)}, {}, ValueError, r"z2: expected shape \(rows, dim\), got \(6, 5, 1\)"),
    ("nt_xent", {ONE: torch.ones(0, 5), TWO: torch.ones(0, 5)}, {}, ValueError, r"z1: expected at least one row"),
    ("nt_xent", {ONE: torch.ones(6, 0), TWO: torch.ones(6, 0)}, {}, ValueError, r"z1: .* one dimension, got"),
    ("nt_xent", {ONE: torch.ones(6, 5, dtype=torch.int64)}, {}, TypeError, r"z1: expected float32.*got torch.int64"),
    ("nt_xent", {ONE: torch.ones(6, 5, dtype=torch.complex64)}, {}, TypeError, r"z1: expected float32"),
    ("nt_xent", {TWO: torch.ones(6, 5).double()}, {}, TypeError, r"z2: expected torch.float32 as z1"),
    ("nt_xent", {TWO: torch.ones(6, 5, device="meta")}, {}, ValueError, r"z2: expected device cpu as z1, got meta"),
    ("nt_xent", {ONE: [[1.0]]}, {}, TypeError, r"z1: expected a Tensor, got list"),
    (
        "info_nce in batch",
        {"positive": torch.ones(6, 4)},
        {},
        ValueError,
        r"positive: expected shape \(6, 5\) as query",
    ),
    ("info_nce shared", {"negatives": torch.ones(4, 6)}, {}, ValueError, r"negatives: expected last dimension 5"),
    ("info_nce shared", {"negatives": torch.ones(0, 5)}, {}, ValueError, r"negatives: expected at least one row"),
    ("info_nce shared", {"negatives": torch.ones(5)}, {}, ValueError, r"negatives: expected shape \(rows, dim\) or"),
    ("info_nce own", {"negatives": torch.ones(7, 4, 5)}, {}, ValueError, r"negatives: expected 6 groups"),
    ("info_nce own", {"negatives": torch.ones(6, 0, 5)}, {}, ValueError, r"negatives: expected at least one row"),
    ("info_nce shared", {"negatives": torch.ones(4, 5).int()}, {}, TypeError, r"negatives: expected float32"),
    ("info_nce shared", {"negatives": [torch.ones(4, 5)]}, {}, TypeError, r"negatives: expected None, a Tensor or a"),
    ("info_nce shared", {"negatives": torch.ones(4, 5, device="meta")}, {}, ValueError, r"negatives: expected device"),
    ("info_nce queue", {"negatives": NegativeQueue(4, 6)}, {}, ValueError, r"negatives: expected last dimension 5"),
]
for case in CASES:
    ERRORS += [
        (
            case,
            {},
            {"temperature": 0.0},
            ValueError,
            r"temperature: .* size is from 1e-8 to 1e8, got 0.0",
        ),
        (case, {}, {"temperature": math.nan}, ValueError, r"temperature: expected a number .* got nan"),
        (case, {}, {"temperature": math.inf}, ValueError, r"temperature: expected a number .* got inf"),
        (case, {}, {"temperature": "0.1"}, TypeError, r"temperature: expected a number .* got str"),
        (case, {}, {"temperature": True}, TypeError, r"temperature: expected a number .* got bool"),
        (case, {}, {"temperature": torch.ones(1)}, ValueError, r"temperature: .* 0-D float tensor, got shape \(1,\)"),
        (case, {}, {"temperature": torch.tensor(1)}, ValueError, r"temperature: .* 0-D float tensor"),
        (
            case,
            {},
            {"temperature": torch.ones((), device="meta")},
            ValueError,
            r"temperature: expected device cpu",
        ),
        (case, {}, {"reduction": "avg"}, ValueError, r"reduction: expected one of none, mean, sum, got 'avg'"),
    ]


@pytest.mark.parametrize(("case", "changes", "options", "error", "message"), ERRORS)
def test_errors_name_the_argument(case, changes, options, error, message):
    arguments = wrong(case, **changes)
    with pytest.raises(error, match=message) as caught:
        loss_of(case, "auto", arguments, **options)
    assert "\n" not in str(caught.value)
    if options and "device" not in message:  # the class says it at once
        with pytest.raises(error, match=message):
            CLASSES[operator_of(case)](**options)
