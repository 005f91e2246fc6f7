"""ssl_fast.compat.pytorch_metric_learning beside the installed library."""

import contextlib
import copy
import inspect
import pickle
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from agreement import RELATIVE, assert_agree, assert_same_error, close, with_gradients
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
    own_path_says,
    rows,
    seeds,
    twice,
    wide,
)
from pytorch_metric_learning import distances, miners, reducers, regularizers
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils
from pytorch_metric_learning.utils import distributed as wrappers

import ssl_fast
from ssl_fast.compat import own_path
from ssl_fast.compat import pytorch_metric_learning as ours
from tests.helpers.processes import run

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


# What the library's own code computes


UNFUSED = {
    "a LpDistance distance": {"distance": distances.LpDistance()},
    "a distance with another p or power": {"distance": distances.CosineSimilarity(power=2)},
    "a temperature of several elements": {"temperature": torch.tensor([0.2, 0.3])},
    "a temperature of this size": {"temperature": 1e9},
}


@every_loss
@pytest.mark.parametrize("option", list(UNFUSED))
def test_other_options(name, option):
    z, labels = rows(8, 5), torch.tensor([0, 1]).repeat(4)
    loss, other = both(name, **UNFUSED[option])
    if option == "a temperature of several elements":
        z, labels = rows(2, 5), torch.tensor([0, 0])
        ref = {"ref_emb": rows(2, 5, 1), "ref_labels": torch.tensor([0, 1])}
    else:
        ref = {}
    own_path_says(option, lambda: loss(z, labels, **ref))
    torch.testing.assert_close(loss(z, labels, **ref), other(z, labels, **ref))


@every_loss
def test_miners(name):
    z, labels = rows(8, 5), classes(8, 3)
    loss, other = both(name)
    for miner in (miners.MultiSimilarityMiner(), miners.TripletMarginMiner()):
        own_path.say_own_path.cache_clear()
        pairs = miner(z, labels)
        own_path_says("an indices_tuple or a miner", lambda pairs=pairs: loss(z, labels, pairs))
        torch.testing.assert_close(loss(z, labels, pairs), other(z, labels, pairs))
        torch.testing.assert_close(loss(z, indices_tuple=pairs), other(z, indices_tuple=pairs))


@every_loss
def test_a_subclass_that_computes_itself(name):
    class Doubled(getattr(ours, name)):
        def _compute_loss(self, *arguments):
            return {"loss": {"losses": torch.full((3,), 7.0), "indices": torch.arange(3), "reduction_type": "element"}}

    with pytest.warns(UserWarning, match="Doubled._compute_loss has no fused form"):
        assert Doubled()(rows(8, 5), classes(8, 3)) == 7


@every_loss
def test_pairs_that_say_what_the_labels_say_are_fused(name):
    z, labels = rows(8, 5), classes(8, 3)
    loss, other = both(name)
    pairs = loss_and_miner_utils.get_all_pairs_indices(labels)
    assert_agree(lambda z: loss(z, labels, pairs), lambda z: other(z, labels), z)
    with_self = loss_and_miner_utils.get_all_pairs_indices(labels, labels.clone())
    assert_agree(*(lambda z, x=x: x(z, labels, with_self) for x in (loss, other)), z)


@every_loss
@pytest.mark.parametrize(
    "change", ["a positive less", "another positive", "a negative twice", "itself as a negative", "order"]
)
def test_pairs_that_nearly_do_are_not(name, change):
    z, labels = rows(8, 5), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    a, p, b, n = (x.clone() for x in loss_and_miner_utils.get_all_pairs_indices(labels))
    if change == "a positive less":
        a, p = a[1:], p[1:]
    elif change == "another positive":
        p[0] = p[1]
    elif change == "a negative twice":
        n[0] = n[1]
    elif change == "itself as a negative":
        n[0] = b[0]
    else:
        b, n = b.flip(0), n.flip(0)
    loss, other = both(name)
    with pytest.warns(UserWarning, match="an indices_tuple or a miner"):
        got = loss(z, labels, (a, p, b, n))
    torch.testing.assert_close(got, other(z, labels, (a, p, b, n)))


BAD = {
    "no labels": lambda z, r, labels: {},
    "too few labels": lambda z, r, labels: {"labels": labels[1:]},
    "labels of two dimensions": lambda z, r, labels: {"labels": labels[:, None]},
    "other columns": lambda z, r, labels: {"labels": labels, "ref_emb": r[:, 1:], "ref_labels": labels.clone()},
    "too few ref_labels": lambda z, r, labels: {"labels": labels, "ref_emb": r, "ref_labels": labels[1:]},
    "another dtype": lambda z, r, labels: {"labels": labels, "ref_emb": r.double(), "ref_labels": labels.clone()},
    "three dimensions": lambda z, r, labels: {"labels": labels, "embeddings": z[None].expand(8, 8, 5)},
}


@every_loss
@pytest.mark.parametrize("what", list(BAD))
def test_errors(name, what):
    z, r, labels = rows(8, 5), rows(8, 5, 1), classes(8, 3)
    arguments = {"embeddings": z} | BAD[what](z, r, labels)
    loss, other = both(name)
    assert_same_error(lambda: loss(**arguments), lambda: other(**arguments))


# Where theirs is wrong


def test_nt_xent_goes_on_where_theirs_stops_at_minus_log_tiny():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.1], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])  # opposite positives, and a negative beside each
    loss, other = both("NTXentLoss", 0.01)
    value, (gradient,) = with_gradients(lambda z: loss(z, labels), [z])
    saturated, (nothing,) = with_gradients(lambda z: other(z, labels), [z])
    exact, (exact_gradient,) = with_gradients(lambda z: other(z, labels), [z.double()])
    assert saturated.item() == pytest.approx(87.3, abs=0.1)
    assert nothing.abs().max() < 1e-3 * exact_gradient.abs().max()
    close(value, exact, 1e-5)
    close(gradient, exact_gradient, 1e-5)


@every_loss
def test_a_zero_row_in_float16_is_finite_where_theirs_is_nan(name):
    z, labels = rows(8, 4).half(), torch.arange(4).repeat(2)
    z[2] = 0
    loss, other = both(name, 0.5, reducer=reducers.MeanReducer())
    assert other(z, labels).isnan()
    value, (gradient,) = with_gradients(lambda z: loss(z, labels), [z])
    close(value, other(z.double(), labels), 1e-3)
    assert gradient.isfinite().all()


def test_supcon_counts_anchors_whose_loss_theirs_rounds_to_zero():
    z = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0.6, 0.8, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    loss, other = both("SupConLoss", 0.02)
    exact, value, dropped = other(z.double(), labels), loss(z, labels), other(z, labels)
    # A half of the anchors has a loss of 4e-22 and less.
    assert dropped.item() == pytest.approx(2 * exact.item(), rel=1e-3)
    close(value, exact, 1e-4)
    # And none is lost to the rounding of sums as large as what is left of them is small.
    far = torch.linalg.qr(rows(32, 32))[0].repeat(2, 1)
    (of_anchors,) = ours.SupConLoss(0.02, reducer=reducers.DoNothingReducer())(far, twice(32)).values()
    assert (of_anchors["losses"] > 0).all()


def test_supcon_of_one_column_is_zero():
    ref = {"ref_emb": rows(1, 4, 1), "ref_labels": torch.tensor([0])}
    torch.testing.assert_close(*(loss(rows(6, 4), classes(6, 2), **ref) for loss in both("SupConLoss")))


@every_loss
def test_nan_is_nan_in_the_mean(name):
    z, labels = rows(8, 4), classes(8, 3)
    z[1, 1] = float("nan")
    assert getattr(ours, name)(reducer=reducers.MeanReducer())(z, labels).isnan()
    # AvgNonZeroReducer, SupConLoss's own, drops what is not above 0, and of nothing left has the sum of 0 * embeddings.
    assert all(loss(z, labels).isnan() for loss in both(name))


# The classes


@pytest.mark.parametrize("name", ours.__all__)
def test_classes(name):
    got, expected = getattr(ours, name), getattr(theirs, name)
    assert issubclass(got, expected)
    assert got.__name__ == name
    for method in ("__init__", "forward", "compute_loss", "create_indices_tuple", "add_to_memory"):
        if hasattr(expected, method):
            signatures = (inspect.signature(getattr(x, method)).parameters.values() for x in (got, expected))
            first, second = ([(p.name, p.default) for p in parameters] for parameters in signatures)
            assert first == second


@every_loss
def test_attributes_and_state(name):
    got, expected = both(name)
    assert set(vars(got)) == set(vars(expected))
    assert got.temperature == expected.temperature
    assert list(got.state_dict()) == list(expected.state_dict())
    assert type(got.reducer) is type(expected.reducer)
    assert type(got.distance) is type(expected.distance)


@every_loss
def test_copies_and_pickles(name):
    z, labels = rows(6, 5), classes(6, 3)
    memory = ours.CrossBatchMemory(getattr(ours, name)(), 5, 8)
    memory(z, labels)
    for copied in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert (copied.queue_idx, copied(z, labels)) == (6, copy.deepcopy(memory)(z, labels))


def test_patch_swaps_and_unpatch_restores():
    original = {name: getattr(theirs, name) for name in LOSSES}
    with ssl_fast.patch("pytorch-metric-learning"):
        assert theirs.NTXentLoss is theirs.ntxent_loss.NTXentLoss is ours.NTXentLoss
        assert wrappers.CrossBatchMemory is pytorch_metric_learning.losses.CrossBatchMemory is ours.CrossBatchMemory
        loss = theirs.SelfSupervisedLoss(theirs.SupConLoss())
        assert wrappers.DistributedLossWrapper(ours.CrossBatchMemory(theirs.NTXentLoss(), 3)).loss
    assert {name: getattr(theirs, name) for name in LOSSES} == original
    assert type(loss.loss) is ours.SupConLoss
    z = rows(6, 5), rows(6, 5, 1)
    torch.testing.assert_close(loss(*z), theirs.SelfSupervisedLoss(theirs.SupConLoss())(*z))


# Several processes


def _wrapped(rank, world, dtype):
    """The losses of wrapped losses and the gradient of the rank's rows, ours less theirs."""
    differences = []
    for name in LOSSES:
        for options in ({}, {"efficient": True}, {"memory": True}):
            results = []
            for library in (ours, theirs):
                loss = getattr(library, name)(0.2)
                loss = library.CrossBatchMemory(loss, 5, 20) if options.get("memory") else loss
                wrapped = wrappers.DistributedLossWrapper(loss, efficient=options.get("efficient", False))
                z = rows(6, 5, rank, dtype).requires_grad_()
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="ssl_fast.compat")
                    value = sum(wrapped(z * factor, classes(6, 4, rank + factor)) for factor in (1, 2))
                value.backward()
                results.append((value.detach(), z.grad))
            differences += [(x - y).abs().max().item() for x, y in zip(*results, strict=True)]
        assert differences[-1] < max(1.0, results[1][1].abs().max())
    return differences


@pytest.mark.long
def test_distributed_loss_wrapper():
    for differences in run(2, _wrapped, torch.float64):
        assert len(differences) == 12
        assert max(differences) < 1e-10


# Memory, compilation, the example


def test_many_views_take_no_matrix_of_pairs():
    # Theirs would take 2048 x 4 million elements, several times: tens of GB.
    z, labels = rows(2048, 128).requires_grad_(), twice(1024)
    loss = ours.NTXentLoss()
    loss(z[:64], labels[:64])
    start = time.perf_counter()
    loss(z, labels).backward()
    assert time.perf_counter() - start < 5
    assert z.grad.isfinite().all()


@pytest.mark.slow
@every_loss
def test_compiled(name):
    loss, z = getattr(ours, name)(0.3), rows(12, 5, dtype=torch.float64)
    for labels in (twice(6), classes(12, 2)):
        assert_agree(*(lambda z, x=x, y=labels: x(z, y) for x in (torch.compile(loss), loss)), z)


@pytest.mark.slow
def test_the_example_learns():
    command = [sys.executable, "examples/pytorch_metric_learning_moco.py", "--steps", "60"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    before, after = (float(re.search(rf"{when} training +(\S+)", answer.stdout)[1]) for when in ("before", "after"))
    assert after > before + 0.02
