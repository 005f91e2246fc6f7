"""The compiled operators as PyTorch sees them: opcheck, torch.compile, their own checks, SIMD levels, workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssl_fast
from ssl_fast import NegativeQueue, functional
from ssl_fast.operators import loading
from tests.helpers.backends import only_compiled
from tests.helpers.loss_cases import (
    OPERATOR_CASES,
    arguments_of,
    every_case,
    gradients_of,
    leaves,
    on_every_fused_backend,
    operator_of,
)


@only_compiled
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nt_xent", (torch.ones(4, 5), torch.ones(4, 6), 10.0, None, 1, False)),
        ("nt_xent", (torch.ones(0, 5), torch.ones(0, 5), 10.0, None, 1, False)),
        ("nt_xent", (torch.ones(4), torch.ones(4), 10.0, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(3, 5), None, False, 10.0, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(3, 6), True, 10.0, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(3, 2, 5), True, 10.0, None, 1, False)),
        ("info_nce", (torch.ones(4, 5), torch.ones(4, 5), torch.ones(5), True, 10.0, None, 1, False)),
    ],
)
def test_the_operator_itself_refuses_shapes_it_would_misread(name, arguments):
    with pytest.raises(ValueError, match="expected"):
        getattr(torch.ops.ssl_fast, name)(*arguments)


@only_compiled
@pytest.mark.parametrize(
    ("name", "arguments", "place"),
    [
        (
            "similarity_lse",
            (torch.ones(4, 5), torch.ones(4, 5), None, None, 1, True, True, True, 10.0, None, torch.ones(4)),
            10,
        ),
        (
            "similarity_softplus",
            (torch.ones(4, 5), torch.ones(4, 5), True, 10.0, None, torch.zeros(()), torch.ones(4)),
            6,
        ),
        (
            "positive_loss",
            (torch.ones(8, dtype=torch.float64), torch.ones(4), torch.ones(4), False, False, 10.0, None, 1),
            2,
        ),
    ],
)
def test_only_what_gets_a_gradient_makes_a_graph(name, arguments, place):
    """`place` is the one tensor argument without a gradient: positive, or the weights of positive_loss."""
    for i, x in enumerate(arguments):
        if isinstance(x, torch.Tensor):
            leaf = x.clone().requires_grad_()
            outputs = getattr(torch.ops.ssl_fast, name)(*arguments[:i], leaf, *arguments[i + 1 :])
            first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            assert first.requires_grad == (i != place)
            assert i == place or torch.autograd.grad(first.sum(), leaf)[0].shape == leaf.shape


@only_compiled
@every_case(of=OPERATOR_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case, dtype):
    arguments = list(arguments_of(case, count=9, negatives=7, dim=5, dtype=dtype).values())
    names = gradients_of(case)
    for x, _ in zip(arguments, names, strict=False):
        x.requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    if case == "nt_xent":
        operator, inputs = torch.ops.ssl_fast.nt_xent, (*arguments, 1.0, scale, 1, True)
    else:
        rows = arguments[2].queue if isinstance(arguments[2], NegativeQueue) else arguments[2]
        inputs = (*arguments[:2], rows, not isinstance(arguments[2], NegativeQueue), 1.0, scale, 1, True)
        operator = torch.ops.ssl_fast.info_nce
    torch.library.opcheck(operator, inputs)


def backward_inputs(case):
    """The operator that runs backward and what autograd gives it."""
    arguments = arguments_of(case, count=9, negatives=7, dim=5)
    ops = torch.ops.ssl_fast
    if case == "nt_xent":
        sums = ops.nt_xent(*arguments.values(), 5.0, None, 1, False)[2]
        return ops.nt_xent_backward, [torch.tensor(2.0), *arguments.values(), 5.0, None, 1, sums]
    query, positive, negatives = arguments.values()
    is_queue = isinstance(negatives, NegativeQueue)
    rows = negatives.queue if is_queue else negatives
    forward = ops.info_nce(query, positive, rows, not is_queue, 5.0, None, 1, False, True)
    # Autograd asks for gradients of negatives that are a tensor, in batch for those of the positives.
    return ops.info_nce_backward, [
        torch.tensor(2.0), query, positive, None if is_queue else rows, negatives is None, not is_queue,
        5.0, None, 1, *forward[2:], not is_queue,
    ]  # fmt: skip


@only_compiled
@every_case(of=OPERATOR_CASES)
def test_opcheck_of_the_backward(case):
    operator, inputs = backward_inputs(case)
    torch.library.opcheck(operator, tuple(inputs))


@only_compiled
@every_case(of=OPERATOR_CASES)
def test_the_backward_refuses_what_it_would_misread(case):
    operator, good = backward_inputs(case)
    names = [argument.name for argument in operator.default._schema.arguments]
    sums = good[names.index("sums")]
    bad = [
        ("gradient", torch.ones(9)),
        ("reduction", 0),  # of a gradient without rows
        ("reduction", 7),
        ("sums", sums[:, :-1]),
        ("sums", sums.double()),
        ("sums", sums.T.contiguous().T),
    ]
    if case == "nt_xent":
        bad += [("z1", torch.ones(8, 5)), ("z2", torch.ones(9, 4))]
    else:
        bad += [("query", torch.ones(8, 5)), ("positive", torch.ones(9, 4)), ("key_means", torch.ones(9, 4))]
        # A gradient of negatives that are not there, or of two kinds of them.
        in_batch = good[names.index("in_batch")]
        bad.append(("negatives_gradient", True) if case == "info_nce queue" else ("in_batch", not in_batch))
        bad.append(("negatives", torch.ones(7, 4)))
    for name, value in bad:
        inputs = list(good)
        inputs[names.index(name)] = value
        with pytest.raises(ValueError, match="expected"):
            operator(*inputs)


def _leaf(*shape):
    return torch.randn(shape, requires_grad=True)


OPCHECKS = [
    ("similarity_lse", lambda: (_leaf(5, 3), None, IDS5, None, 3, True, True, False, 1.0, SCALE, None)),
    ("similarity_lse", lambda: (_leaf(5, 3), _leaf(5, 3), None, None, 1, True, False, True, 5.0, None, torch.zeros(5))),
    ("similarity_lse", lambda: (_leaf(5, 3), _leaf(7, 3), IDS5, IDS7, 2, True, True, False, 5.0, None, None)),
    ("pair_similarity", lambda: (_leaf(5, 3), _leaf(5, 3), True, False)),
    ("class_similarity", lambda: (_leaf(5, 3), IDS5)),
    ("similarity_softplus", lambda: (_leaf(5, 3), _leaf(5, 3), True, 1.0, SCALE, _leaf(), torch.zeros(5))),
]  # fmt: skip
IDS5, IDS7, SCALE = torch.arange(5) % 3, torch.arange(7), torch.tensor(5.0, requires_grad=True)


@only_compiled
@pytest.mark.parametrize(("name", "inputs"), OPCHECKS)
def test_opcheck_of_what_losses_are_made_of(name, inputs):
    torch.library.opcheck(getattr(torch.ops.ssl_fast, name), inputs())


@only_compiled
@pytest.mark.parametrize(("name", "inputs"), OPCHECKS)
def test_opcheck_of_their_backward(name, inputs):
    with torch.no_grad():
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs()]
        operator, ops = getattr(torch.ops.ssl_fast, f"{name}_backward"), torch.ops.ssl_fast
        if name == "similarity_lse":
            *_, sums = ops.similarity_lse(*arguments)
            a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, *scale, _ = arguments
            of_columns = torch.ones(5) if columns else None
            arguments = [torch.ones(5), of_columns, a, b, ids_a, ids_b, mask, normalize_a, normalize_b, *scale,
                         sums, True, b is not None]  # fmt: skip
        elif name == "similarity_softplus":
            sums, _, kept = ops.similarity_softplus(*arguments)
            arguments = [torch.ones(5), *arguments[:-1], sums, kept, True, True]
        else:
            arguments = [torch.ones(5), *arguments]
        torch.library.opcheck(operator, tuple(arguments))
        for place, bad in ((0, torch.ones(4)), (0, torch.ones(()))):
            wrong = list(arguments)
            wrong[place] = bad
            with pytest.raises(ValueError, match="expected"):
                operator(*wrong)


def compiled_agrees(case, backend, compiler, dynamic=None):
    names = gradients_of(case)
    operator = getattr(functional, operator_of(case))

    def step(temperature, **arguments):
        loss, stats = operator(**arguments, temperature=temperature, return_stats=True)
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
                loss, top1 = run(temperature, **arguments)
            loss.backward()
            results.append([loss.detach(), top1, temperature.grad, *(arguments[name].grad for name in names)])
        for eager, fused in zip(*results, strict=True):
            assert torch.equal(eager, fused)


@pytest.mark.long
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


class _Losses(torch.utils.data.Dataset):
    """One item: a loss of enough rows for several threads."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return functional.nt_xent(*torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0)))


def test_a_data_loader_worker_gives_the_same():
    """A worker is forked after this process has used its threads; torch gives it one thread."""
    here = _Losses()[0]
    (there,) = torch.utils.data.DataLoader(_Losses(), num_workers=1, timeout=60)
    assert torch.equal(here, there[0])


LEVELS = loading.extension.build_info()["simd_available"].split() if loading.extension else []


def _at_level(level: str, *command: str):
    tests = Path(__file__).parent
    environment = {**os.environ, "SSL_FAST_SIMD": level}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tests.parent)


@pytest.mark.long
@only_compiled
@pytest.mark.parametrize("level", LEVELS)
def test_every_simd_level_is_right(level):
    answer = _at_level(level, "-m", "ssl_fast", "doctor")
    assert f"simd: {level}" in answer.stdout
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.long
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
    files = [f"tests/losses/test_{name}.py" for name in ("nt_xent", "info_nce")]
    files += [f"tests/updates/test_{name}.py" for name in ("ema", "enqueue")]
    answer = _at_level(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert answer.returncode == 0, answer.stdout
