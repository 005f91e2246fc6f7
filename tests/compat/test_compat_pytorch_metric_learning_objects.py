"""ssl_fast.compat.pytorch_metric_learning: its classes, patched, over processes, compiled; the example."""

import copy
import inspect
import pickle
import time
import warnings

import pytest
import pytorch_metric_learning
import torch
from agreement import assert_agree
from metric_learning import (
    LOSSES,
    _only_fused,  # noqa: F401  # a fixture of every test
    both,
    classes,
    every_loss,
    rows,
    twice,
)
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import distributed as wrappers

import ssl_fast
from ssl_fast.compat import pytorch_metric_learning as ours
from tests.helpers.examples import number, run_example
from tests.helpers.processes import run

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
    printed = run_example("pytorch_metric_learning_moco", "--steps", "60")
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed) + 0.02
