"""ssl_fast.compat.pytorch_metric_learning: what the library's own code computes, errors, and where theirs is wrong."""

import pytest
import torch
from agreement import assert_agree, assert_same_error, close, with_gradients
from metric_learning import (
    _only_fused,  # noqa: F401  # a fixture of every test
    both,
    classes,
    every_loss,
    own_path_says,
    rows,
    twice,
)
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils

from ssl_fast.compat import own_path
from ssl_fast.compat import pytorch_metric_learning as ours

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


# Errors


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
