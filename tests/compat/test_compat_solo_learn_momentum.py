"""The momentum updates of ssl_fast.compat.solo_learn beside the formula written here."""

import copy
import math
import pickle

import pytest
import torch
from agreement import close
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_fast.compat.solo_learn import MomentumUpdater, initialize_momentum_params


def networks(dtype=torch.float32):
    def network():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)

    return network(), network()


@given(
    base=st.floats(0, 1),
    rest=st.floats(0, 1),
    steps=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_updates_in_sequence(base, rest, steps, dtype):
    online, momentum = networks(dtype)
    updater = MomentumUpdater(base, base + (1 - base) * rest)
    expected = [x.detach().double().clone() for x in momentum.parameters()]
    for step in range(steps):
        for x in online.parameters():
            x.data += 0.3
        tau = updater.final_tau - (updater.final_tau - base) * (math.cos(math.pi * step / steps) + 1) / 2
        updater.update_tau(step, steps)
        assert updater.cur_tau == pytest.approx(tau)
        updater.update(online, momentum)
        expected = [
            tau * t + (1 - tau) * s.detach().double() for t, s in zip(expected, online.parameters(), strict=True)
        ]
    for got, truth in zip(momentum.parameters(), expected, strict=True):
        close(got.detach(), truth, 1e-6 if dtype == torch.float32 else 1e-12)


def test_the_schedule_ends_at_final_tau_and_goes_on():
    updater = MomentumUpdater(0.5, 0.9)
    assert (updater.base_tau, updater.cur_tau, updater.final_tau) == (0.5, 0.5, 0.9)
    updater.update_tau(10, 10)
    assert updater.cur_tau == pytest.approx(0.9)
    updater.update_tau(15, 10)  # past the end the cosine comes back, as there
    assert updater.cur_tau == pytest.approx(0.7)


def test_an_update_is_in_place_and_leaves_buffers_alone():
    # solo-learn's gives each parameter new storage, which flat views and CUDA graphs do not follow.
    online, momentum = networks()
    online(torch.randn(6, 3))
    storage, buffers = [x.data_ptr() for x in momentum.parameters()], [x.clone() for x in momentum.buffers()]
    initialize_momentum_params(online, momentum)
    assert not any(x.requires_grad for x in momentum.parameters())
    assert all(x.requires_grad for x in online.parameters())
    assert all(torch.equal(x, y) for x, y in zip(momentum.parameters(), online.parameters(), strict=True))
    for x in online.parameters():
        x.data += 1
    MomentumUpdater(0.9).update(online, momentum)
    for t, s in zip(momentum.parameters(), online.parameters(), strict=True):
        close(t, s.detach() - 0.9, 1e-6)
    assert [x.data_ptr() for x in momentum.parameters()] == storage
    assert all(torch.equal(x, y) for x, y in zip(momentum.buffers(), buffers, strict=True))


@pytest.mark.parametrize("taus", [(-0.1, 1.0), (1.1, 1.0), (0.5, 1.5), (0.9, 0.5), (math.nan, 1.0)])
def test_refused_taus(taus):
    with pytest.raises(AssertionError):
        MomentumUpdater(*taus)


def test_networks_that_differ_are_refused_before_anything_is_changed():
    online, momentum = nn.Linear(3, 2), nn.Linear(3, 4)
    before = momentum.weight.clone()
    with pytest.raises(ValueError, match="expected shape"):
        MomentumUpdater().update(online, momentum)
    assert torch.equal(momentum.weight, before)


def test_copies_of_an_updater():
    updater = MomentumUpdater(0.7, 0.8)
    updater.update_tau(1, 4)
    for copied in (copy.deepcopy(updater), pickle.loads(pickle.dumps(updater))):
        assert vars(copied) == vars(updater)
        assert vars(copied).keys() == {"base_tau", "cur_tau", "final_tau"}
