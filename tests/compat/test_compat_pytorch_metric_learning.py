"""ssl_fast.compat.pytorch_metric_learning beside the installed library."""

import contextlib
from pathlib import Path

import pytest
import torch
from agreement import RELATIVE, assert_agree, close, with_gradients
from hypothesis import given
from hypothesis import strategies as st
from metric_learning import (
    LABEL_TYPES,
    LOSSES,
    _only_fused,  # noqa: F401  # a fixture of every test
    both,
    classes,
    every_loss,
    names,
    rows,
    seeds,
    twice,
    wide,
)
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import common_functions

import ssl_fast
from ssl_fast.compat import pytorch_metric_learning as ours

ROOT = Path(__file__).parents[2]

# Values and gradients


@given(names, st.integers(1, 12), st.integers(2, 8), st.integers(1, 8), st.floats(0.1, 2), wide, seeds,
       st.sampled_from(LABEL_TYPES))  # fmt: skip
def test_labels(name, count, dim, number, temperature, dtype, seed, kind):
    labels = classes(count, number, seed).to(kind)
    losses = both(name, temperature)
    # Both round logits of 1 / temperature.
    relative = 5e-5 if dtype == torch.float32 and temperature < 0.3 else None
    assert_agree(*(lambda z, x=x: x(z, labels) for x in losses), rows(count, dim, seed, dtype), relative=relative)


@given(names, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), wide, seeds, st.booleans())
def test_reference_rows(name, count, others, number, dtype, seed, other_type):
    labels, ref_labels = classes(count, number, seed), classes(others, number, seed + 1)
    ref_labels = ref_labels.int() if other_type else ref_labels
    losses = both(name, 0.3)
    assert_agree(
        *(lambda z, r, loss=loss: loss(z, labels, ref_emb=r, ref_labels=ref_labels) for loss in losses),
        rows(count, 4, seed, dtype),
        rows(others, 4, seed + 1, dtype),
    )


@every_loss
def test_reference_rows_that_are_the_rows_or_have_their_labels(name):
    z, r, labels = rows(8, 4), rows(8, 4, 1), classes(8, 3)
    for options in ({"ref_labels": labels}, {"ref_labels": labels.clone()}, {}):
        losses = both(name, 0.2)
        assert_agree(*(lambda z, r, o=options, x=x: x(z, labels, ref_emb=r, **o) for x in losses), z, r)
        assert_agree(*(lambda z, o=options, x=x: x(z, labels, ref_emb=z, **o) for x in losses), z)


@given(names, st.booleans(), st.integers(1, 9), wide, seeds)
def test_self_supervised(name, symmetric, count, dtype, seed):
    wrapped = [ours.SelfSupervisedLoss(loss, symmetric=symmetric) for loss in both(name)]
    assert_agree(*wrapped, rows(count, 5, seed, dtype), rows(count, 5, seed + 1, dtype))


@pytest.mark.parametrize("temperature", [0.07, -0.5, 1, torch.tensor(0.2), torch.tensor([0.2])], ids=str)
@every_loss
def test_temperatures(name, temperature):
    losses = both(name, temperature)
    assert_agree(*(lambda z, x=x: x(z, classes(9, 4)) for x in losses), rows(9, 5, dtype=torch.float64))


@every_loss
@pytest.mark.parametrize("number", [2, 8])
def test_learnable_temperature(name, number):
    z, labels, found = rows(20, 5, dtype=torch.float64), classes(20, number), []
    for loss in (getattr(x, name)(torch.nn.Parameter(torch.tensor(0.2))) for x in (ours, theirs)):
        loss.double()(z, labels).backward()
        found.append(loss.temperature.grad)
    close(*found, 1e-11)


@every_loss
def test_second_derivatives_are_refused_which_theirs_has(name):
    z, labels = rows(20, 5).requires_grad_(), classes(20, 2)
    loss, other = both(name)
    with torch.no_grad():
        assert not loss(z, labels).requires_grad
    for found in (loss, other):
        (gradient,) = torch.autograd.grad(found(z, labels), z, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented") if found is loss else contextlib.nullcontext():
            gradient.sum().backward()


def test_more_positives_than_rows_are_reduced_at_once():
    loss, seen = ours.NTXentLoss(), []
    loss.reducer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]["loss"]))
    loss(rows(20, 5), classes(20, 2))
    loss(rows(20, 5), twice(10))
    assert [(x["losses"].shape, x["reduction_type"]) for x in seen] == [((), "already_reduced"), ((20,), "pos_pair")]


@pytest.mark.parametrize("normalize", [True, False])
@every_loss
def test_dot_product(name, normalize):
    losses = [
        getattr(x, name)(1.5, distance=distances.DotProductSimilarity(normalize_embeddings=normalize))
        for x in (ours, theirs)
    ]
    for labels in (classes(9, 4), classes(30, 2)):
        z = rows(len(labels), 5, dtype=torch.float64)
        assert_agree(*(lambda z, x=x, labels=labels: x(z, labels) for x in losses), z)


@pytest.mark.parametrize("number", [2, 3, 12])
@pytest.mark.parametrize("others", [0, 70])
def test_many_positives_by_blocks(monkeypatch, number, others):
    """More anchors than a block, and classes that begin and end inside blocks."""
    monkeypatch.setattr(ours, "BLOCK", 16)
    z, labels = rows(50, 6, dtype=torch.float64), classes(50, number)
    options = {"ref_emb": rows(others, 6, 1).double(), "ref_labels": classes(others, number + 2, 1)} if others else {}
    losses = both("NTXentLoss", 0.1)
    assert_agree(*(lambda z, x=x: x(z, labels, **options) for x in losses), z)


@given(names, st.sampled_from([torch.bfloat16, torch.float16]), st.integers(2, 5), seeds)
def test_half_types_give_float32(name, dtype, number, seed):
    labels, z = classes(10, number, seed), rows(10, 6, seed, dtype)
    loss, other = both(name, 0.5)
    value, (gradient,) = with_gradients(lambda z: loss(z, labels), [z])
    exact, (exact_gradient,) = with_gradients(lambda z: other(z, labels), [z.double()])
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    close(value, exact, 1e-5)
    close(gradient, exact_gradient, RELATIVE[dtype])
    assert other(z, labels).dtype == dtype


@every_loss
def test_autocast_and_a_memory_of_another_dtype(name):
    labels, z, r = classes(9, 3), rows(9, 6), rows(11, 6, 1)
    ref = {"ref_emb": r, "ref_labels": classes(11, 3, 1)}
    loss, other = both(name, 0.2)
    exact = other(z, labels, **ref)
    with torch.autocast("cpu", torch.bfloat16):
        got, mixed, rounded = loss(z, labels, **ref), loss(z.bfloat16(), labels, **ref), other(z, labels, **ref)
    close(got, exact, 1e-5)
    close(mixed, exact, 1e-2)
    close(rounded, exact, 2e-2)


@every_loss
@pytest.mark.parametrize("layout", ["transposed", "every other row", "expanded"])
def test_strides(name, layout):
    z, labels = rows(8, 4), classes(8, 3)
    layouts = {"transposed": z.T.contiguous().T, "every other row": z.repeat_interleave(2, 0)[::2]}
    z = layouts.get(layout, z[:1].expand(8, 4))
    torch.testing.assert_close(*(loss(z, labels.repeat_interleave(2)[::2]) for loss in both(name)))


@every_loss
def test_the_reference_backend(name):
    z, r, labels = rows(8, 4), rows(8, 4, 1), classes(8, 3)
    loss, ref = getattr(ours, name)(), {"ref_emb": r, "ref_labels": labels.flip(0)}
    expected = loss(z, labels), loss(z, labels, **ref)
    with ssl_fast.backend("reference"):
        torch.testing.assert_close((loss(z, labels), loss(z, labels, **ref)), expected)


@every_loss
def test_zero_rows(name):
    z, labels = rows(8, 4), classes(8, 3)
    z[2] = 0
    losses = both(name)
    torch.testing.assert_close(*(loss(z, labels) for loss in losses))
    _, (gradient,) = with_gradients(lambda z: losses[0](z, labels), [z])
    assert gradient.isfinite().all()


# No pairs


@every_loss
@pytest.mark.parametrize(
    ("labels", "ref_labels"),
    [([0], None), ([0, 1], None), ([0, 0, 0], None), ([0, 1, 2], None), ([0, 0, 1], None), ([3], [3, 4]), ([3], [4, 5]),
     ([3, 4], [3]), ([3, 3], [3])],
)  # fmt: skip
def test_where_pairs_are_few(name, labels, ref_labels):
    # Theirs has no loss without positives, without negatives, and of one pair each.
    ref = {} if ref_labels is None else {"ref_emb": rows(len(ref_labels), 3, 1), "ref_labels": torch.tensor(ref_labels)}
    losses = both(name, 0.5)
    assert_agree(*(lambda z, x=x: x(z, torch.tensor(labels), **ref) for x in losses), rows(len(labels), 3))


# Reducers, regularizers, statistics

REDUCERS = {
    "none": reducers.DoNothingReducer(),
    "mean": reducers.MeanReducer(),
    "sum": reducers.SumReducer(),
    "non-zero": reducers.AvgNonZeroReducer(),
    "threshold": reducers.ThresholdReducer(low=0.5, high=3.0),
    "weighted": reducers.ClassWeightedReducer(torch.tensor([0.2, 1.0, 0.7])),
    "anchor": reducers.PerAnchorReducer(),
    "several": reducers.MultipleReducers({"loss": reducers.SumReducer()}),
}


@every_loss
@pytest.mark.parametrize("reducer", list(REDUCERS))
@pytest.mark.parametrize("kind", ["two views", "classes"])
def test_reducers(name, reducer, kind):
    labels = torch.arange(3).repeat(2) if kind == "two views" else classes(30, 3)
    z = rows(len(labels), 5)
    losses = both(name, 0.5, reducer=REDUCERS[reducer])
    if reducer != "none":
        assert_agree(*(lambda z, x=x: x(z, labels) for x in losses), z)
        return
    (got,), (expected,) = (loss(z, labels).values() for loss in losses)
    assert got["reduction_type"] == expected["reduction_type"]
    torch.testing.assert_close(got["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["indices"], expected["indices"], rtol=0, atol=0)


@pytest.mark.parametrize("step", [1, 7])
def test_pairs_that_are_many_are_gathered_in_parts(monkeypatch, step):
    monkeypatch.setattr(ours, "CHUNK_ELEMENTS", step * 5)
    losses = both("NTXentLoss", 0.5, reducer=reducers.SumReducer())
    assert_agree(*(lambda z, x=x: x(z, classes(12, 2)) for x in losses), rows(12, 5))


@every_loss
@pytest.mark.parametrize("number", [2, 12])
def test_embedding_regularizer(name, number):
    losses = both(name, embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3)
    assert_agree(*(lambda z, x=x: x(z, classes(20, number)) for x in losses), rows(20, 5))


@every_loss
def test_statistics(name, monkeypatch):
    monkeypatch.setattr(common_functions, "COLLECT_STATS", True)
    losses = both(name)
    for loss in losses:
        loss(rows(20, 5), classes(20, 2))
    for part in ("distance", "reducer"):
        got, expected = (getattr(loss, part) for loss in losses)
        assert got._record_these_stats == expected._record_these_stats
        for stat in expected._record_these_stats:
            assert getattr(got, stat) == pytest.approx(getattr(expected, stat), rel=1e-6), stat
        assert any(getattr(expected, stat) for stat in expected._record_these_stats)
    assert losses[0]._record_these == losses[1]._record_these


def test_multiple_losses():
    together = [
        theirs.MultipleLosses([getattr(x, name)() for name in LOSSES], weights=[1, 0.5]) for x in (ours, theirs)
    ]
    assert_agree(*(lambda z, x=x: x(z, classes(9, 3)) for x in together), rows(9, 5))
