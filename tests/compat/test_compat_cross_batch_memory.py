"""CrossBatchMemory of ssl_fast.compat.pytorch_metric_learning beside the installed library's."""

import contextlib
import copy
import warnings

import pytest
import torch
from agreement import assert_agree, assert_same_error, close
from hypothesis import given
from hypothesis import strategies as st
from metric_learning import (
    _only_fused,  # noqa: F401  # a fixture of every test
    classes,
    every_loss,
    names,
    rows,
    seeds,
    wide,
)
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils

from ssl_fast.compat import own_path
from ssl_fast.compat import pytorch_metric_learning as ours


def memories(name, dim=5, size=11, **options):
    return [library.CrossBatchMemory(getattr(library, name)(0.3, **options), dim, size) for library in (ours, theirs)]


def same_memory(got, expected):
    for buffer in ("embedding_memory", "label_memory", "curr_batch_idx"):
        torch.testing.assert_close(getattr(got, buffer), getattr(expected, buffer), rtol=0, atol=0)
    assert (got.queue_idx, got.has_been_filled) == (expected.queue_idx, expected.has_been_filled)


@given(names, wide, st.lists(st.tuples(st.integers(2, 11), st.booleans()), min_size=1, max_size=6), seeds)
def test_memory(name, dtype, batches, seed):
    """Batches of any size, all or some of whose rows are enqueued."""
    pair = memories(name)
    for number, (count, masked) in enumerate(batches):
        z, labels = rows(count, 5, seed + number, dtype), classes(count, 4, seed + number)
        mask = torch.arange(count) % 2 == 0 if masked else None
        calls = (lambda z, x=x, y=labels, m=mask: copy.deepcopy(x)(z, y, enqueue_mask=m) for x in pair)
        assert_agree(*calls, z)
        for memory in pair:
            memory(z, labels, enqueue_mask=mask)
        same_memory(*pair)


@every_loss
def test_memory_of_any_inner_options(name):
    """The reducer and the labels' dtype; and an inner loss without a fused form."""
    for options in ({"reducer": reducers.SumReducer()}, {"distance": distances.LpDistance()}):
        pair = memories(name, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(4):
                z, labels = rows(6, 5, number), classes(6, 3, number).int()
                torch.testing.assert_close(*(memory(z, labels) for memory in pair))
                same_memory(*pair)


def test_memory_with_a_miner_and_with_pairs():
    for miner in (None, miners.MultiSimilarityMiner()):
        got, expected = (x.CrossBatchMemory(x.NTXentLoss(0.3), 5, 16, copy.deepcopy(miner)) for x in (ours, theirs))
        own_path.say_own_path.cache_clear()
        for number in range(3):
            z, labels = rows(6, 5, number), classes(6, 3, number)
            pairs = None if miner else loss_and_miner_utils.get_all_pairs_indices(labels)
            with pytest.warns(UserWarning, match="an indices_tuple") if number == 0 else contextlib.nullcontext():
                value = got(z, labels, pairs)
            torch.testing.assert_close(value, expected(z, labels, pairs))


def test_memory_around_another_loss():
    pair = [library.CrossBatchMemory(theirs.ContrastiveLoss(), 5, 16) for library in (ours, theirs)]
    for number in range(4):
        torch.testing.assert_close(*(memory(rows(6, 5, number), classes(6, 3, number)) for memory in pair))


def test_memory_is_not_changed_under_a_graph():
    pair = memories("NTXentLoss")
    z = rows(6, 5).requires_grad_()
    gradients = []
    for memory in pair:  # two batches before one backward pass, as gradients are accumulated
        total = sum(memory(z * factor, classes(6, 3, factor)) for factor in (1, 2))
        gradients += torch.autograd.grad(total, z)
    close(*gradients, 1e-5)


def test_memory_resumes_where_theirs_loses_its_place():
    pair = memories("NTXentLoss")
    for number in range(3):  # 18 rows in 11
        for memory in pair:
            memory(rows(6, 5, number), classes(6, 3, number))
    fresh = memories("NTXentLoss")
    for memory, stored in zip(fresh, pair, strict=True):
        memory.load_state_dict(stored.state_dict(), strict=True)
    assert (fresh[0].queue_idx, fresh[0].has_been_filled) == (7, True)
    assert (fresh[1].queue_idx, fresh[1].has_been_filled) == (0, False)
    z, labels = rows(6, 5, 3), classes(6, 3, 3)
    expected = pair[0](z, labels)
    torch.testing.assert_close(fresh[0](z, labels), expected)
    assert fresh[1](z, labels) != expected


def test_memory_state_dicts(tmp_path):
    got, expected = memories("NTXentLoss")
    assert list(got.state_dict()) == [*expected.state_dict(), "_extra_state"]
    for memory in (got, expected):
        memory(rows(6, 5), classes(6, 3))
    fresh, fresh_theirs = memories("NTXentLoss")
    fresh.load_state_dict(expected.state_dict(), strict=True)  # theirs: no place in it
    assert torch.equal(fresh.embedding_memory, expected.embedding_memory)
    assert (fresh.queue_idx, fresh.has_been_filled) == (0, False)
    with pytest.raises(RuntimeError, match="_extra_state"):
        fresh_theirs.load_state_dict(got.state_dict())
    fresh_theirs.load_state_dict(got.state_dict(), strict=False)
    inside = torch.nn.ModuleDict({"memory": fresh})
    torch.save(torch.nn.ModuleDict({"memory": got}).state_dict(), tmp_path / "state.pt")
    inside.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (fresh.queue_idx, fresh.has_been_filled) == (6, False)
    with pytest.raises(RuntimeError, match=r"Missing key.*embedding_memory"):
        inside.load_state_dict({})


def test_memory_batch_of_one_row_is_no_positive_of_itself_as_in_theirs():
    pair = memories("SupConLoss", reducer=reducers.SumReducer())
    for memory in pair:
        memory(rows(5, 5), torch.tensor([0, 0, 1, 1, 2]))
    got, wrong = (memory(rows(1, 5, 1), torch.tensor([0])) for memory in pair)
    without = theirs.SupConLoss(0.3, reducer=reducers.SumReducer())
    right = without(rows(1, 5, 1), torch.tensor([0]), None, rows(5, 5), torch.tensor([0, 0, 1, 1, 2]))
    torch.testing.assert_close(got, right)
    assert (wrong - right).abs() > 0.1


def test_memory_enqueues_more_rows_than_it_has_and_none():
    pair = memories("NTXentLoss", size=4)
    z, labels = rows(9, 5), classes(9, 3)
    mask = torch.arange(9) < 6
    for memory in pair:
        memory(z, labels, enqueue_mask=mask)
    # Row j goes to j mod 4, the last of a place stays: 4, 5, 2, 3. Theirs takes it for a memory of 2 rows.
    torch.testing.assert_close(pair[0].embedding_memory, z[[4, 5, 2, 3]])
    assert (pair[0].has_been_filled, pair[1].has_been_filled) == (True, False)
    pair = memories("NTXentLoss")
    for memory in pair:
        memory(z, labels, enqueue_mask=torch.zeros(9, dtype=torch.bool))
    # Nothing was written: theirs takes its rows of zeros for keys of class 0.
    assert (pair[0].has_been_filled, pair[1].has_been_filled) == (False, True)


def test_memory_errors():
    z, labels = rows(6, 5), classes(6, 3)
    pairs, mask = loss_and_miner_utils.get_all_pairs_indices(labels), torch.ones(6, dtype=torch.bool)
    got, expected = memories("NTXentLoss", size=4)
    for arguments in ((z, labels), (z, labels, pairs, mask), (z, labels, None, mask[1:])):
        assert_same_error(lambda a=arguments: got(*a), lambda a=arguments: expected(*a))
    for wrapper in (lambda x: x.CrossBatchMemory, lambda x: x.SelfSupervisedLoss):
        bad = theirs.HistogramLoss(n_bins=4)
        assert_same_error(lambda w=wrapper, b=bad: w(ours)(b, 5), lambda w=wrapper, b=bad: w(theirs)(b, 5))
