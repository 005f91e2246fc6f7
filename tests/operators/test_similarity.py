"""The primitive and the operators beside it on every backend, against plain float64."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import functional
from ssl_fast.formulas.rows import unit_rows
from ssl_fast.operators import calls, codes
from tests.helpers.backends import INTERPRETED, device_of, every_backend, every_fused_backend, only_compiled
from tests.helpers.compare import BOUNDS, assert_close
from tests.helpers.evaluate import MATRIX_UNITS, eager_code_of, row_norms, within_float16
from tests.helpers.strategies import (
    dims,
    dtypes,
    embeddings,
    kinds,
    lay_out,
    layouts,
    rows,
    seeds,
    temperatures,
    upstream,
)

MASKS = ["all", "self", "exclude", "only"]
HALF_TYPES = (torch.float16, torch.bfloat16)


def mask_options(mask, ids_a, ids_b):
    if mask in ("all", "self"):
        return {"exclude": None if mask == "all" else "self"}
    return {mask: (ids_a, ids_b)}


def weighted(lse, upstreams):
    """A scalar of the log-sum-exps, without those over nothing."""
    parts = lse if isinstance(lse, tuple) else (lse,)
    return sum((x.masked_fill(x.isinf(), 0) * g.to(x)).sum() for x, g in zip(parts, upstreams, strict=False))


def run(backend, a, b, scale, upstreams, **options):
    """(lse or both, gradients of a, b and scale); b None: a itself."""
    leaves = [x.detach().clone().requires_grad_() for x in (a, *(() if b is None else (b,)), scale)]
    with ssl_fast.backend(backend):
        lse = functional.similarity_lse(leaves[0], leaves[0 if b is None else 1], leaves[-1], **options)
        loss = weighted(lse, upstreams)
        gradients = torch.autograd.grad(loss, leaves) if loss.requires_grad else [torch.zeros_like(x) for x in leaves]
    return (lse if isinstance(lse, tuple) else (lse,)), gradients


def assert_lse(backend, a, b, temperature, mask, ids, normalize=True, columns=False, seed=0):
    """Values and gradients against the reference in float64, with what the reference needs in the same dtype."""
    device = device_of(backend)
    options = {"normalize": normalize, "columns": columns}
    ids = tuple(x.to(device) for x in ids)
    if b is None:
        ids = (ids[0], ids[0])
    scale = torch.tensor(1 / temperature, dtype=torch.float64)
    upstreams = [upstream(len(x), seed + i, "random").to(device) for i, x in enumerate((a, a if b is None else b))]
    a, b = a.to(device), None if b is None else b.to(device)
    wide = a.double(), None if b is None else b.double()
    options |= mask_options(mask, *ids)
    got, gradients = run(backend, a, b, scale, upstreams, **options)
    truth, expected = run("reference", *wide, scale, upstreams, **options)
    with eager_code_of(backend):
        eager, of_eager = run("reference", a, b, scale, upstreams, **options)
    coarsest = min((x.dtype for x in (a, b) if x is not None), key=lambda dtype: -torch.finfo(dtype).eps)
    for x, y, z in zip(got, truth, eager, strict=True):
        assert x.dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
        assert torch.equal(x.isinf(), y.isinf())
        assert_close(x, y, coarsest, "loss", z, scale=1.0)
    tensors = (a, scale) if b is None else (a, b, scale)
    for i, (x, y, z) in enumerate(zip(gradients, expected, of_eager, strict=True)):
        of = tensors[i]
        assert x.dtype == of.dtype
        norms = row_norms(of) if of.dim() == 2 and normalize else torch.ones((), device=device)
        dtype = of.dtype if of.dtype in HALF_TYPES else coarsest
        if of.dim() == 2:
            floor = 0.1 * abs(1 / temperature)
        else:  # where weights are rounded to a half type, equal ones are all rounded the same way
            share = torch.finfo(dtype).eps / 2 / BOUNDS[dtype].gradient if dtype in HALF_TYPES else 0.1
            floor = share * sum(g.abs().sum().item() for g in upstreams)
        roundoff = torch.finfo(dtype).eps / 2 if backend in MATRIX_UNITS and dtype in HALF_TYPES else 0.0
        x, y, z = (value * norms for value in within_float16(of, x, y, z))
        assert_close(x, y, dtype, "gradient", z, scale=floor, roundoff=roundoff)


every_lse = every_backend("similarity_lse")


@every_lse
@given(rows, rows, dims, dtypes, kinds, layouts, temperatures, seeds, st.sampled_from(MASKS), st.booleans(), st.data())
def test_any_input(backend, count, others, dim, dtype, kind, layout, temperature, seed, mask, symmetric, data):
    a = lay_out(embeddings(count, dim, dtype, kind, seed), layout)
    b = None if symmetric else lay_out(embeddings(others, dim, dtype, kind, seed + 1), layout)
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(-3, 7, (n,), generator=generator) for n in (count, others)]
    columns = data.draw(st.booleans()) if mask != "only" else False
    assert_lse(backend, a, b, temperature, mask, ids, columns=columns, seed=seed)


@every_lse
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_several_blocks(backend, mask, symmetric, columns, temperature):
    count, others, dim = (90, 70, 40) if INTERPRETED else (430, 390, 40)
    a = embeddings(count, dim, torch.float32, "ordinary", 0)
    b = None if symmetric else embeddings(others, dim, torch.float32, "ordinary", 1)
    # No fewer than 64 bits of the ids count.
    ids = [(torch.arange(n) % 50) * (1 << 32) + 5 for n in (count, others)]
    assert_lse(backend, a, b, temperature, mask, ids, columns=columns)


@every_lse
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("norm", [1.0, 3.0, 1e-3])
def test_rows_as_they_are(backend, columns, norm):
    a, b = (norm * embeddings(60, 20, torch.float64, "ordinary", i) for i in range(2))
    ids = (torch.arange(60), torch.arange(60))
    assert_lse(backend, a, b, 0.5, "self", ids, normalize=False, columns=columns)
    assert_lse(backend, a, None, 0.5, "all", ids, normalize=False)


@every_lse
def test_a_few_rows_against_many(backend):
    a, b = embeddings(5, 30, torch.float32, "ordinary", 0), embeddings(3000, 30, torch.float32, "ordinary", 1)
    assert_lse(backend, a, b, 0.1, "exclude", (torch.arange(5), torch.arange(3000)))
    assert_lse(backend, a, b, 0.1, "all", (torch.arange(5), torch.arange(3000)), columns=True)
    assert_lse(backend, b, a, 0.1, "all", (torch.arange(3000), torch.arange(5)), columns=True)


@every_lse
def test_nothing_to_sum_is_minus_infinity(backend):
    x = torch.randn(4, 3, device=device_of(backend), requires_grad=True)
    same = torch.zeros(4, dtype=torch.int64, device=x.device)
    with ssl_fast.backend(backend):
        for lse in (
            functional.similarity_lse(x, x, 5.0, exclude=(same, same)),
            functional.similarity_lse(x[:1], x[:1].detach(), 5.0, exclude="self"),
            functional.similarity_lse(x, x.detach().clone(), torch.tensor(90.0), exclude=(same, same.clone())),
        ):
            assert lse.isneginf().all()
            (gradient,) = torch.autograd.grad(lse.masked_fill(lse.isinf(), 0).sum(), x)
            assert (gradient == 0).all()


@every_lse
@pytest.mark.parametrize("columns", [True, False])
def test_huge_rows_as_they_are(backend, columns):
    """Inf, or a dot that overflows, is never a finite sum."""
    a, b = torch.ones(3, 4), torch.ones(3, 4)
    b[1, 2] = -math.inf
    with ssl_fast.backend(backend):
        lse = functional.similarity_lse(a.to(device_of(backend)), b.to(device_of(backend)), normalize=False)
    assert lse.isnan().all()


@every_lse
@pytest.mark.parametrize("columns", [None, False, True])  # None: rows with each other
def test_a_row_with_one_key_has_weight_one(backend, columns):
    """Also at s = 1000: the score that the backward pass subtracts the log-sum-exp from is rounded as the forward's.

    The scores, of some 1000, are off by 1e-4, and so would be a weight of which only one of the two is rounded.
    """
    rows = unit_rows(embeddings(2 if columns is None else 1, 3, torch.float64, "ordinary", 0))
    keys = rows.flip(0) if columns is None else unit_rows(embeddings(1, 3, torch.float64, "ordinary", 1))
    device = device_of(backend)
    a = rows.float().to(device).requires_grad_()
    b = a if columns is None else keys.float().to(device).requires_grad_()
    with ssl_fast.backend(backend):
        options = {"exclude": "self"} if columns is None else {"columns": columns}
        lse = functional.similarity_lse(a, b, 1000.0, normalize=False, **options)
    (lse[0] if columns else lse).sum().backward()
    expected = 1000 * keys.to(device) * (2 if columns is None else 1)
    torch.testing.assert_close(a.grad.double(), expected, rtol=1e-6, atol=0)


@every_lse
@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0), torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))])
def test_scales(backend, scale):
    a, b = torch.randn(2, 5, 3, device=device_of(backend))
    with ssl_fast.backend(backend):
        lse = functional.similarity_lse(a, b, scale)
    u, v = (torch.nn.functional.normalize(x.double()) for x in (a, b))
    torch.testing.assert_close(lse.double(), (2 * u @ v.T).logsumexp(1), rtol=1e-6, atol=1e-6)


@every_fused_backend("similarity_lse")
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("temperature", [0.1, -0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_with_exact_ties(backend, columns, temperature, dtype):
    """Many equal rows: what is as similar as the positive is not above it."""
    device = device_of(backend)
    count = 70 if INTERPRETED else 210
    base = embeddings(9, 33, dtype, "ordinary", 0)
    pick = torch.randint(9, (2, count), generator=torch.Generator().manual_seed(1))
    a, b = base[pick[0]].to(device), base[pick[1]].to(device)
    positive = similarity_on(backend, "pair_similarity", a, b)
    name = "similarity_lse_of_both" if columns else "similarity_lse"
    *_, ranks = similarity_on(backend, name, a, b, codes.NOT_SELF, 1 / temperature, positive=positive)
    u, v = (torch.nn.functional.normalize(x.double()) for x in (a, b))
    dots = math.copysign(1, temperature) * (u @ v.T)
    own = dots.diagonal()[:, None] + 1e-6  # nothing is so near but ties
    expected = [(dots > own).sum(1), (own < dots.T).sum(1)]
    assert torch.equal(ranks.cpu(), torch.stack(expected[: len(ranks)]).cpu())
    assert len(ranks) == 1 + columns


@only_compiled
@pytest.mark.long
def test_ranks_of_rows_read_no_positives_of_more_columns():
    """Few rows and many columns, which have no positives. A thread has memory of its own: beyond it lies nothing."""
    code = (
        "import threading, torch, ssl_fast\n"
        "a, b, positive = torch.ones(64, 8), torch.ones(500_000, 8), torch.zeros(64)\n"
        "b[::2] *= -1\n"
        "call = torch.ops.ssl_fast.similarity_lse\n"
        "settings = None, None, 0, True, True, False, 10.0, None\n"
        "work = lambda: print((call(a, b, *settings, positive)[2] == 250_000).all().item())\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "True\n"


def similarity_on(backend, name, *arguments, **options):
    with ssl_fast.backend(backend):
        return getattr(calls, name)(*arguments, **options)


@every_fused_backend("pair_similarity")
@given(rows, dims, dtypes, kinds, layouts, seeds, st.booleans())
def test_pair_similarity(backend, count, dim, dtype, kind, layout, seed, normalize_b):
    a, b = (lay_out(embeddings(count, dim, dtype, kind, seed + i), layout).to(device_of(backend)) for i in range(2))
    if not normalize_b:
        b = torch.nn.functional.normalize(b.double(), dim=1).to(dtype)
    gradient = upstream(count, seed, "random").to(a.device)
    results = []
    for x, y, prepared in ((a, b, None), (a.double(), b.double(), unit_rows)):
        leaves = [z.detach().clone().requires_grad_() for z in (x, y)]
        if prepared is None:
            out = similarity_on(backend, "pair_similarity", *leaves, True, normalize_b)
        else:
            out = (prepared(leaves[0]) * (prepared(leaves[1]) if normalize_b else leaves[1])).sum(1)
        results.append([out.detach(), *torch.autograd.grad((out * gradient).sum(), leaves)])
    (got, *gradients), (truth, *expected) = results
    assert_close(got, truth, torch.float64 if dtype == torch.float64 else torch.float32, "loss", scale=1.0)
    for x, y, of, normalized in zip(gradients, expected, (a, b), (True, normalize_b), strict=True):
        norms = row_norms(of) if normalized else 1.0
        # A half type's own rounding is what eager code has too.
        x, y, eager = (value * norms for value in within_float16(of, x, y, y.to(dtype)))
        assert_close(x, y, dtype, "gradient", eager, scale=1.0)


@every_fused_backend("class_similarity")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (40, 40), (300, 7), (300, 1)])
def test_class_similarity(backend, dtype, count, classes):
    device = device_of(backend)
    x = embeddings(count, 33, dtype, "mixed norms", 0).to(device).requires_grad_()
    labels = (torch.arange(count) % classes).to(device) - (1 << 35)
    similarities, positives = similarity_on(backend, "class_similarity", x, labels)
    assert torch.equal(positives, (labels[:, None] == labels).sum(1) - 1)
    wide = x.detach().double().requires_grad_()
    u = unit_rows(wide)
    others = (labels[:, None] == labels) & ~torch.eye(count, dtype=torch.bool, device=device)
    truth = ((u @ u.T) * others).sum(1)
    gradient = upstream(count, 0, "random").to(device)
    norms = row_norms(x)
    bound = torch.float64 if dtype == torch.float64 else torch.float32
    assert_close(similarities, truth, bound, "loss", scale=1.0)
    got, expected = (torch.autograd.grad((y * gradient).sum(), z)[0] for y, z in ((similarities, x), (truth, wide)))
    assert got.dtype == dtype
    assert_close(got.double() * norms, expected * norms, dtype, "gradient", expected.to(dtype) * norms, scale=1.0)


ERRORS = [
    ({"b": torch.ones(3, 4)}, {}, ValueError, r"b: expected 5 columns as a, got \(3, 4\)"),
    ({"a": torch.ones(5)}, {}, ValueError, r"a: expected shape \(rows, dim\), got \(5,\)"),
    ({}, {"scale": 0.0}, ValueError, r"scale: expected a number whose size"),
    ({}, {"scale": torch.ones(2)}, ValueError, r"scale: expected a number or a 0-D"),
    ({}, {"exclude": "diagonal"}, ValueError, r"exclude: expected one of self, got 'diagonal'"),
    ({}, {"exclude": torch.arange(4)}, TypeError, r"exclude: expected a pair of Tensors"),
    ({}, {"exclude": (torch.arange(4), torch.arange(4))}, ValueError, r"exclude\[1\]: expected shape \(3,\)"),
    ({}, {"exclude": (torch.ones(4), torch.ones(3))}, TypeError, r"exclude\[0\]: expected integers, got torch.float32"),
    ({}, {"only": (torch.arange(4), [1, 2, 3])}, TypeError, r"only\[1\]: expected a Tensor, got list"),
    ({}, {"only": (torch.arange(4),) * 2, "exclude": "self"}, ValueError, r"only: expected None where exclude"),
    ({"b": None}, {"only": (torch.arange(4), torch.arange(4))}, ValueError, r"only: expected the same Tensor twice"),
]


@pytest.mark.parametrize(("changes", "options", "error", "message"), ERRORS)
def test_errors_name_the_argument(changes, options, error, message):
    arguments = {"a": torch.ones(4, 5), "b": torch.ones(3, 5)} | changes
    if arguments["b"] is None:
        arguments["b"] = arguments["a"]
    with pytest.raises(error, match=message):
        functional.similarity_lse(**arguments, **options)


X, IDS = torch.ones(4, 5), torch.arange(4)


@only_compiled
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("similarity_lse", (X, torch.ones(4, 6), None, None, 0, True, True, False, 10.0, None, None)),
        ("similarity_lse", (torch.ones(4), None, None, None, 0, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, None, None, None, 4, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, None, None, None, 0, True, True, True, 10.0, None, None)),
        ("similarity_lse", (X, None, None, None, 2, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, X, IDS, None, 2, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, None, IDS[:3], None, 2, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, None, IDS.int(), None, 2, True, True, False, 10.0, None, None)),
        ("similarity_lse", (X, X, None, None, 0, True, True, False, 10.0, None, torch.ones(3))),
        ("similarity_lse", (X, torch.ones(3, 5), None, None, 0, True, True, True, 10.0, None, torch.ones(4))),
        ("pair_similarity", (X, torch.ones(3, 5), True, True)),
        ("class_similarity", (X, IDS[:3])),
        ("class_similarity", (X, IDS.int())),
        ("similarity_softplus", (X, torch.ones(3, 5), True, 10.0, None, torch.tensor(0.0), None)),
        ("similarity_softplus", (X, X, True, 10.0, None, torch.zeros(1), None)),
    ],
)
def test_the_operator_itself_refuses_shapes_it_would_misread(name, arguments):
    with pytest.raises(ValueError, match="expected"):
        getattr(torch.ops.ssl_fast, name)(*arguments)
