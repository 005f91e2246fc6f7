"""InfoNCE in its four forms on every backend against float64. What it shares with NT-Xent is in test_losses.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import NegativeQueue, functional
from tests.helpers import oracle
from tests.helpers.backends import INTERPRETED, device_of, every_backend, every_fused_backend
from tests.helpers.evaluate import assert_agrees, assert_stats
from tests.helpers.strategies import (
    BOUNDARY,
    DTYPES,
    dims,
    dtypes,
    embeddings,
    kinds,
    lay_out,
    layouts,
    seeds,
    temperatures,
    upstream,
    upstream_kinds,
)

on_every_backend = every_backend("info_nce")
FORMS = ["in batch", "shared", "own", "queue"]
# Queries with negatives of their own: Triton's interpreter takes milliseconds for each.
MOST_PAIRED = 9 if INTERPRETED else 1000
forms = pytest.mark.parametrize("form", FORMS)
# In batch there are no negatives but the positives, whose dtype is the query's.
FORMS_AND_DTYPES = [
    (form, dtype, other)
    for form, dtype, other in itertools.product(FORMS, DTYPES, DTYPES)
    if form != "in batch" or dtype == other
]


def tensors(form, count, negatives, dim, dtype, backend, kind="ordinary", seed=0, negatives_dtype=None):
    """The arguments by name: query, positive and negatives of one form."""
    device = device_of(backend)
    query, positive = (embeddings(count, dim, dtype, kind, seed + i).to(device) for i in (0, 1))
    negatives_dtype = negatives_dtype or dtype
    if form == "in batch":
        own = None
    elif form == "queue":
        own = NegativeQueue(negatives, dim, dtype=negatives_dtype, seed=seed % 1000).to(device)
    else:
        rows = count * negatives if form == "own" else negatives
        own = embeddings(rows, dim, negatives_dtype, kind, seed + 2).to(device)
        own = own.view(count, negatives, dim) if form == "own" else own
    return {"query": query, "positive": positive, "negatives": own}


def gradients_of(form):
    return ["query", "positive"] + (["negatives"] if form in ("shared", "own") else [])


@on_every_backend
@given(
    st.sampled_from(FORMS),
    st.one_of(st.integers(1, 6), st.integers(1, 70)),
    st.one_of(st.integers(1, 6), st.integers(1, 70)),
    dims,
    dtypes,
    dtypes,
    kinds,
    layouts,
    temperatures,
    seeds,
    st.data(),
    upstream_kinds,
)
def test_any_input(
    backend, form, count, negatives, dim, dtype, negatives_dtype, kind, layout, temperature, seed, data, upstream_kind
):
    count = min(count, MOST_PAIRED) if form == "own" else count
    arguments = tensors(form, count, negatives, dim, dtype, backend, kind, seed, negatives_dtype)
    arguments = {name: lay_out(x, layout) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    wants = data.draw(st.sets(st.sampled_from([*gradients_of(form), "temperature"]), min_size=1))
    assert_agrees(
        "info_nce",
        backend,
        arguments,
        torch.tensor(temperature, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
        sorted(wants),
        "none",
        upstream(count, seed, upstream_kind),
        with_eager=True,
        floor=0.1,
    )


# (N, M, D); the larger ones span several blocks of rows, of negatives and of dimensions, with ragged edges.
SIZES = [(1, 1, 1), (1, 9, 3), (3, 1, 5), (5, 7, 33), (64, 64, 128), (300, 70, 33), (37, 5000, 128), (130, 700, 260)]


@pytest.mark.long
@every_fused_backend("info_nce")
@forms
@pytest.mark.parametrize(("count", "negatives", "dim"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes_within_the_contract(backend, form, count, negatives, dim, dtype):
    if form == "own":
        count = min(count, MOST_PAIRED)
        negatives = min(negatives, 70)  # N * M rows
    for temperature in (0.1, 0.5, -0.2):
        arguments = tensors(form, count, negatives, dim, dtype, backend)
        # In one dimension the gradient is 0 but for rounding.
        floor = 1.0 if dim == 1 else 0.0
        assert_agrees("info_nce", backend, arguments, temperature, gradients_of(form), floor=floor)


@on_every_backend
@pytest.mark.parametrize(("count", "dim"), [(700, 33), (1100, 128), (300, 600)])
def test_many_rows_in_batch(backend, count, dim):
    arguments = tensors("in batch", count, 0, dim, torch.float32, backend)
    assert_agrees("info_nce", backend, arguments, 0.1, ["query", "positive"])


@on_every_backend
@pytest.mark.parametrize(("form", "dtype", "negatives_dtype"), FORMS_AND_DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_dtypes_of_query_and_negatives(backend, form, dtype, negatives_dtype, temperature):
    arguments = tensors(form, 40, 70, 33, dtype, backend, negatives_dtype=negatives_dtype)
    gradient = upstream(40, 0, "random")
    wants = gradients_of(form)
    assert_agrees("info_nce", backend, arguments, temperature, wants, "none", gradient, with_eager=True)


@on_every_backend
@forms
@pytest.mark.parametrize("temperature", [0.001, 0.02, BOUNDARY * (1 - 1e-7), BOUNDARY * (1 + 1e-7), -0.02, -0.001])
def test_float64_on_both_sides_of_the_fixed_shift(backend, form, temperature):
    arguments = tensors(form, 70, 90, 40, torch.float64, backend)
    t = torch.tensor(temperature, dtype=torch.float64)
    wants = [*gradients_of(form), "temperature"]
    assert_agrees("info_nce", backend, arguments, t, wants, with_eager=True)


@on_every_backend
@pytest.mark.parametrize("norm", [1e-3, 0.5, 3.0, 100.0])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_queue_rows_are_taken_as_they_are(backend, norm, temperature):
    # Rows longer than 1 give logits beyond |s|, where a fixed shift would overflow.
    arguments = tensors("queue", 20, 50, 33, torch.float32, backend)
    arguments["negatives"].queue *= norm * torch.rand(50, 1, device=device_of(backend))
    t = torch.tensor(temperature)
    assert_agrees("info_nce", backend, arguments, t, ["query", "positive", "temperature"], with_eager=True)


@on_every_backend
@forms
@pytest.mark.parametrize("temperature", [0.1, 0.01, -0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 9, 40])
def test_stats_are_the_oracle(backend, form, temperature, dtype, count):
    arguments = tensors(form, count, 12, 6, dtype, backend)
    arguments["positive"] = arguments["query"] + 0.7 * arguments["positive"]
    query, positive, negatives = arguments.values()
    rows = negatives.queue if form == "queue" else negatives
    rows = None if rows is None else rows.cpu().double().numpy()
    in_numpy = (query.cpu().double().numpy(), positive.cpu().double().numpy(), rows)
    expected = oracle.info_nce(*in_numpy, temperature, as_they_are=form == "queue")
    with ssl_fast.backend(backend):
        _, stats = functional.info_nce(query, positive, negatives, temperature, return_stats=True)
    assert_stats(stats, expected, temperature, dtype)


@every_fused_backend("info_nce")
@forms
@pytest.mark.parametrize("dim", [1, 33, 128])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_all_rows_equal(backend, form, dim, temperature):
    x = torch.nn.functional.normalize(torch.randn(dim, device=device_of(backend)), dim=0)
    arguments = tensors(form, 70, 300, dim, torch.float32, backend)
    query = positive = x.expand(70, dim)
    negatives, count = arguments["negatives"], 69
    if form == "queue":
        negatives.queue[:] = x
    elif negatives is not None:
        negatives = x.expand(negatives.shape)
    if negatives is not None:
        count = 300
    with ssl_fast.backend(backend):
        loss, stats = functional.info_nce(query, positive, negatives, temperature, return_stats=True)
    # A queue's rows are not normalised again, so they may be a rounding away from the positive.
    assert loss.item() == pytest.approx(math.log(count + 1), rel=1e-5 if form == "queue" else 2e-6)
    if form != "queue":
        assert stats.top1 == stats.top5 == 1  # ties go to the positive


@on_every_backend
@given(st.sampled_from(FORMS), st.integers(1, 70), st.integers(1, 70), dims, seeds)
def test_exact_ties_and_counts(backend, form, count, negatives, dim, seed):
    # One-hot rows: similarities are exactly 0 or 1, so ranks are too.
    arguments = tensors(form, count, negatives, dim, torch.float32, backend, "one-hot", seed)
    if form == "queue":
        arguments["negatives"].queue[:] = embeddings(negatives, dim, torch.float32, "one-hot", seed)
    with ssl_fast.backend(backend):
        stats = functional.info_nce(*arguments.values(), 0.2, return_stats=True)[1]
    with ssl_fast.backend("reference"):
        expected = functional.info_nce(*arguments.values(), 0.2, return_stats=True)[1]
    assert [stats.top1.item(), stats.top5.item()] == pytest.approx([x.item() for x in expected[:2]], abs=1e-6)


@on_every_backend
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_enqueue_between_loss_and_backward(backend, reduction):
    """MoCo's order: the gradients are those of the queue that the loss saw."""
    arguments = tensors("queue", 12, 40, 16, torch.float32, backend)
    query, positive, queue = arguments.values()
    gradients = []
    for enqueues in (False, True):
        q, k = query.clone().requires_grad_(), positive.clone().requires_grad_()
        with ssl_fast.backend(backend):
            loss = functional.info_nce(q, k, queue, 0.1, reduction=reduction)
            if enqueues:
                queue.enqueue_(positive)
            loss.sum().backward()
        gradients.append((q.grad, k.grad))
    assert queue.queue_ptr.item() == 12
    for before, after in zip(*gradients, strict=True):
        assert torch.equal(before, after)


@on_every_backend
def test_queue_gets_no_gradient_and_is_unchanged(backend):
    query, positive, queue = tensors("queue", 6, 10, 8, torch.float32, backend).values()
    before = queue.queue.clone()
    query.requires_grad_()
    with ssl_fast.backend(backend):
        functional.info_nce(query, positive, queue).backward()
    assert queue.queue.grad is None
    assert torch.equal(queue.queue, before)
    assert queue.queue_ptr == 0


@on_every_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dim", [8, 64])  # of 64 float32 kernels read the queue where it lies
def test_bad_queue_row_reaches_every_query(backend, bad, dim):
    query, positive, queue = tensors("queue", 6, 300, dim, torch.float32, backend).values()
    queue.queue[257, 3] = bad
    query.requires_grad_()
    with ssl_fast.backend(backend):
        loss = functional.info_nce(query, positive, queue, 0.1, reduction="none")
        loss.sum().backward()
    # +Inf times a query's entry is Inf or -Inf; a logit of -Inf is a finite loss that hides the Inf.
    assert not loss.isfinite().any()
    assert not query.grad.isfinite().any()


@pytest.mark.long
@every_fused_backend("info_nce")
@pytest.mark.parametrize("form", ["shared", "queue"])
def test_small_terms_beside_a_large_one(backend, form):
    """A near duplicate of the query first, then 170 tiles of others that together matter."""
    arguments = tensors(form, 64, 32768, 128, torch.float32, backend)
    query = arguments["query"]
    arguments["positive"] = query + 0.3 * arguments["positive"]
    near = query + 0.02 * torch.randn_like(query)
    if form == "queue":
        arguments["negatives"].queue[:64] = torch.nn.functional.normalize(near)
    else:
        arguments["negatives"][:64] = near
    # Eager counts too: the gradient of a negative that nearly is the query cancels in the normalisation.
    assert_agrees("info_nce", backend, arguments, 0.06, gradients_of(form), with_eager=True)


@every_fused_backend("info_nce")
@pytest.mark.parametrize("dim", [64, 100, 300])  # read where it lies, copied, and wider than registers hold
def test_a_float16_queue_of_large_rows(backend, dim):
    """Rows of a queue are taken as they are, up to float16's largest number."""
    arguments = tensors("queue", 12, 7, dim, torch.float16, backend)
    queue = arguments["negatives"].queue
    queue *= 2000 / queue.abs().amax(1, keepdim=True)
    gradient = upstream(12, 0, "random")
    assert_agrees("info_nce", backend, arguments, 100.0, ["query"], "none", gradient, with_eager=True, floor=0.1)
