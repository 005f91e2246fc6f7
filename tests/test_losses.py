"""What all losses share, on every backend: autograd, determinism, errors, torch.compile, reductions."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import device_of, why_not
from evaluate import assert_agrees, evaluate
from loss_cases import (
    CASES,
    arguments_of,
    every_case,
    gradients_of,
    loss_rows,
    on_every_backend,
    on_every_fused_backend,
    operator_of,
)
from strategies import LAYOUTS, upstream

import ssl_fast
from ssl_fast import InfoNCELoss, NegativeQueue, NTXentLoss, functional, native

CLASSES = {"nt_xent": NTXentLoss, "info_nce": InfoNCELoss}
REDUCTIONS = ["none", "mean", "sum"]
# Several blocks of rows, of negatives and of dimensions, ragged all.
LARGE = {"count": 230, "negatives": 1300, "dim": 70}

only_compiled = pytest.mark.skipif(bool(why_not("nt_xent", "cpu")), reason=why_not("nt_xent", "cpu"))


def large(case):
    return LARGE | ({"count": 30, "negatives": 230} if case == "info_nce own" else {})


def loss_of(case, backend, arguments, *options, **named):
    with ssl_fast.backend(backend):
        return getattr(functional, operator_of(case))(*arguments.values(), *options, **named)


def leaves(arguments, names):
    return {
        name: x.detach().clone().requires_grad_() if name in names else x
        for name, x in arguments.items()
    }  # fmt: skip


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
@pytest.mark.parametrize("kind", ["transposed", "expanded", "strided"])
def test_strides_of_the_upstream_gradient(case, backend, kind):
    rows = loss_rows(case, 30)
    plain = upstream(rows, 0, "random")
    gradient = {
        "transposed": plain.view(1, rows).expand(2, rows).contiguous().T[:, 1],
        "strided": plain.repeat_interleave(2)[::2],
        "expanded": torch.tensor(0.7).expand(rows),
    }[kind]
    got, expected = (
        evaluate(operator_of(case), backend, arguments_of(case, backend), 0.1, gradients_of(case), "none", g)
        for g in (gradient, gradient.contiguous())
    )
    for name, value in expected.gradients.items():
        assert torch.equal(got.gradients[name], value)


@on_every_fused_backend
@every_case()
@pytest.mark.parametrize("temperature", [0.3, -0.4, 0.02])
def test_gradcheck(case, backend, temperature):
    arguments = arguments_of(case, backend, count=5, negatives=4, dim=3, dtype=torch.float64)
    names = gradients_of(case)
    t = torch.tensor(temperature, dtype=torch.float64, device=device_of(backend), requires_grad=True)

    def loss(t, *tensors):
        return loss_of(case, backend, {**arguments, **dict(zip(names, tensors, strict=True))}, t, "none")

    assert torch.autograd.gradcheck(loss, (t, *leaves(arguments, names).values())[: 1 + len(names)])


@on_every_fused_backend
@every_case()
def test_second_derivative_is_an_error(case, backend):
    arguments = leaves(arguments_of(case, backend), gradients_of(case))
    inputs = [arguments[name] for name in gradients_of(case)]
    gradients = torch.autograd.grad(loss_of(case, backend, arguments), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradients[0].sum().backward()


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
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in arguments_of(case).items()}
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
    module = CLASSES[operator_of(case)](0.3, reduction)
    with ssl_fast.backend(backend):
        assert torch.equal(module(*arguments.values()), loss_of(case, backend, arguments, 0.3, reduction))
    assert f"temperature=0.3, reduction='{reduction}'" in repr(module)


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
        place = (3, 4, 5) if case == "info_nce own" and name == "negatives" else (205 % len(arguments[name]), 5)
        arguments[name][place] = bad
        leaf = leaves(arguments, gradients_of(case))
        loss = loss_of(case, backend, leaf, temperature, "none")
        loss.sum().backward()
        hit = loss.isnan()
        if case == "nt_xent" or (name == "negatives" and case == "info_nce shared") or (
            name == "positive" and case == "info_nce in batch"
        ):  # fmt: skip
            assert hit.all()
        else:
            assert hit.nonzero().flatten().tolist() == [place[0]]
        assert not leaf[name].grad[place[0]].isfinite().any()


@on_every_backend
@every_case()
@pytest.mark.parametrize("bad", [0.0, math.nan])
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
        (case, {}, {"temperature": 0.0}, ValueError, r"temperature: expected a finite number other than 0, got 0.0"),
        (case, {}, {"temperature": math.nan}, ValueError, r"temperature: expected a finite number .* got nan"),
        (case, {}, {"temperature": math.inf}, ValueError, r"temperature: expected a finite number .* got inf"),
        (case, {}, {"temperature": "0.1"}, TypeError, r"temperature: expected a number .* got str"),
        (case, {}, {"temperature": True}, TypeError, r"temperature: expected a number .* got bool"),
        (case, {}, {"temperature": torch.ones(1)}, ValueError, r"temperature: .* 0-D float tensor, got shape \(1,\)"),
        (case, {}, {"temperature": torch.tensor(1)}, ValueError, r"temperature: .* 0-D float tensor"),
        (case, {}, {"reduction": "avg"}, ValueError, r"reduction: expected one of none, mean, sum, got 'avg'"),
    ]


@pytest.mark.parametrize(("case", "changes", "options", "error", "message"), ERRORS)
def test_errors_name_the_argument(case, changes, options, error, message):
    arguments = wrong(case, **changes)
    with pytest.raises(error, match=message) as caught:
        loss_of(case, "auto", arguments, **options)
    assert "\n" not in str(caught.value)
    if options:  # the class says it at once
        with pytest.raises(error, match=message):
            CLASSES[operator_of(case)](**options)


@only_compiled
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nt_xent", (torch.ones(4, 5), torch.ones(4, 6), 0.1, None, 1, False)),
        ("nt_xent", (torch.ones(0, 5), torch.ones(0, 5), 0.1, None, 1, False)),
        ("nt_xent", (torch.ones(4), torch.ones(4), 0.1, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(3, 5), None, False, 0.1, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(3, 6), True, 0.1, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(3, 2, 5), True, 0.1, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(5), True, 0.1, None, 1, False)),
    ],
)
def test_the_operator_itself_refuses_shapes_it_would_misread(name, arguments):
    with pytest.raises(ValueError, match="expected"):
        getattr(torch.ops.ssl_fast, name)(*arguments)


# torch.compile and the operators' registration


@on_every_fused_backend
@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case, backend, dtype):
    arguments = list(arguments_of(case, backend, count=9, negatives=7, dim=5, dtype=dtype).values())
    names = gradients_of(case)
    for x, _ in zip(arguments, names, strict=False):
        x.requires_grad_()
    temperature = torch.tensor(0.2, requires_grad=True)
    if case == "nt_xent":
        operator, inputs = torch.ops.ssl_fast.nt_xent, (*arguments, 1.0, temperature, 1, True)
    else:
        rows = arguments[2].queue if isinstance(arguments[2], NegativeQueue) else arguments[2]
        inputs = (*arguments[:2], rows, not isinstance(arguments[2], NegativeQueue), 1.0, temperature, 1, True)
        operator = torch.ops.ssl_fast.info_nce
    torch.library.opcheck(operator, inputs)


@only_compiled
@every_case()
def test_opcheck_of_the_backward(case):
    arguments = arguments_of(case, count=9, negatives=7, dim=5)
    ops = torch.ops.ssl_fast
    if case == "nt_xent":
        sums = ops.nt_xent(*arguments.values(), 0.2, None, 1, False)[2]
        inputs = (torch.tensor(2.0), *arguments.values(), 0.2, None, 1, sums)
        torch.library.opcheck(ops.nt_xent_backward, inputs)
        return
    query, positive, negatives = arguments.values()
    is_queue = isinstance(negatives, NegativeQueue)
    rows = negatives.queue if is_queue else negatives
    forward = ops.info_nce(query, positive, rows, not is_queue, 0.2, None, 1, False, True)
    # Autograd asks for gradients of negatives that are a tensor, in batch for those of the positives.
    inputs = (
        torch.tensor(2.0), query, positive, None if is_queue else rows, negatives is None, not is_queue,
        0.2, None, 1, *forward[2:], not is_queue,
    )  # fmt: skip
    torch.library.opcheck(ops.info_nce_backward, inputs)


def compiled_agrees(case, backend, compiler, dynamic=None):
    names = gradients_of(case)
    operator = getattr(functional, operator_of(case))

    def step(*tensors, temperature):
        loss, stats = operator(*tensors, temperature, return_stats=True)
        return 2 * loss, stats.top1

    torch._dynamo.reset()  # each case compiles the same function: together they would pass its limit
    compiled = torch.compile(step, fullgraph=True, backend=compiler, dynamic=dynamic)
    sizes = (30, 41) if dynamic else (30,)
    for count in sizes:
        results = []
        for run in (step, compiled):
            arguments = leaves(arguments_of(case, backend, count=count), names)
            temperature = torch.tensor(0.2, requires_grad=True)
            with ssl_fast.backend(backend):
                loss, top1 = run(*arguments.values(), temperature=temperature)
            loss.backward()
            results.append([loss.detach(), top1, temperature.grad, *(arguments[name].grad for name in names)])
        for eager, fused in zip(*results, strict=True):
            assert torch.equal(eager, fused)


@on_every_fused_backend
@every_case()
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(case, backend, dynamic):
    compiled_agrees(case, backend, "aot_eager", dynamic)


@pytest.mark.slow
@on_every_fused_backend
@every_case()
def test_compile_with_inductor(case, backend):
    compiled_agrees(case, backend, "inductor")


# Processes and processors


class _LossAndGradient(torch.utils.data.Dataset):
    """One item: the loss and the size of its gradient."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        x = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = functional.nt_xent(x[0], x[1])
        loss.backward()
        return torch.stack([loss.detach(), x.grad.norm()])


def test_a_data_loader_worker_gives_the_same():
    """A worker is forked after this process has used its threads; torch gives it one thread."""
    here = _LossAndGradient()[0]
    (there,) = torch.utils.data.DataLoader(_LossAndGradient(), num_workers=1, timeout=60)
    assert torch.equal(here, there[0])


LEVELS = native.extension.build_info()["simd_available"].split() if native.extension else []


def _at_level(level: str, *command: str):
    tests = Path(__file__).parent
    environment = {**os.environ, "SSL_FAST_SIMD": level}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tests.parent)


@only_compiled
@pytest.mark.parametrize("level", LEVELS)
def test_every_simd_level_is_right(level):
    answer = _at_level(level, "-m", "ssl_fast", "doctor")
    assert f"simd: {level}" in answer.stdout
    assert answer.returncode == 0, answer.stdout + answer.stderr


@only_compiled
def test_an_unknown_simd_level_is_an_error():
    answer = _at_level("avx9", "-c", "import torch, ssl_fast; ssl_fast.functional.nt_xent(*torch.randn(2, 4, 4))")
    assert answer.returncode != 0
    assert "SSL_FAST_SIMD: expected one of plain" in answer.stderr


@pytest.mark.slow
@only_compiled
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("level", LEVELS[:-1])  # the last is what all other tests run at
def test_the_losses_suite_at_every_simd_level(level):
    files = [f"tests/test_{name}.py" for name in ("nt_xent", "info_nce", "ema", "enqueue")]
    answer = _at_level(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert answer.returncode == 0, answer.stdout
