"""Instance discrimination: the memory bank, the softmax over all images, sampled negatives."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import ssl_fast
from ssl_fast import MemoryBank, functional, reference
from tests.helpers.backends import device_of
from tests.helpers.loss_cases import Inputs, on_every_backend

# The memory bank


def test_memory_bank_moves_towards_the_features():
    bank = MemoryBank(10, 4, momentum=0.3, seed=0)
    before, features = bank.bank.clone(), torch.randn(3, 4)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(10))
    bank.update_(torch.tensor([7, 0, 2]), features)
    unit = torch.nn.functional.normalize
    expected = before.clone()
    expected[[7, 0, 2]] = unit(0.3 * before[[7, 0, 2]] + 0.7 * unit(features))
    torch.testing.assert_close(bank.bank, expected)
    assert set(bank.state_dict()) == {"bank"}
    assert "size=10, dim=4, momentum=0.3" in repr(bank)


def test_memory_bank_is_not_changed_by_bad_input():
    bank = MemoryBank(10, 4, seed=0)
    before = bank.bank.clone()
    index = torch.arange(3)
    for arguments, error, message in (
        ((index, torch.ones(3, 5)), ValueError, "features: expected 4 columns as the bank"),
        ((index, torch.ones(2, 4)), ValueError, r"index: expected shape \(2,\)"),
        ((index.float(), torch.ones(3, 4)), TypeError, "index: expected integers"),
        ((torch.tensor([1, 2, 10]), torch.ones(3, 4)), ValueError, "index: expected places from 0 to 9"),
    ):
        with pytest.raises(error, match=message):
            bank.update_(*arguments)
        assert torch.equal(bank.bank, before)
    for options, error, message in (
        ({"size": 0}, ValueError, "size"),
        ({"momentum": 2.0}, ValueError, "momentum"),
        ({"dtype": int}, TypeError, "dtype"),
    ):
        with pytest.raises(error, match=message):
            MemoryBank(**{"size": 3, "dim": 2, **options})


def test_instance_discrimination_end_to_end():
    """Rows of the bank come to lie where their images' features are: the loss falls."""
    torch.manual_seed(0)
    features, bank = torch.randn(20, 8), MemoryBank(20, 8, seed=1)
    loss, index, losses = ssl_fast.InstanceDiscriminationLoss(0.2), torch.arange(20), []
    for _ in range(6):
        losses.append(loss(features, index, bank).item())
        bank.update_(index, features)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6 * losses[0]


def test_places_outside_the_bank_are_refused():
    bank, x = MemoryBank(10, 4, seed=0), torch.randn(2, 4)
    for places in (torch.tensor([-1, 3]), torch.tensor([3, 10])):
        with pytest.raises(ValueError, match="expected places from 0 to"):
            functional.instance_discrimination(x, places, bank)
        with pytest.raises(ValueError, match="expected places from 0 to"):
            functional.instance_nce(x, torch.arange(2), places[:, None], bank, 5.0)
    for noise, error in ((torch.zeros(2, 0).long(), ValueError), (torch.zeros(2).long(), ValueError), ([1], TypeError)):
        with pytest.raises(error, match="noise: expected"):
            functional.instance_nce(x, torch.arange(2), noise, bank, 5.0)


# Sampled negatives


def test_sampled_negatives_as_in_the_original():
    torch.manual_seed(0)
    bank = MemoryBank(50, 8, seed=1)
    loss = ssl_fast.InstanceDiscriminationLoss(0.1, negatives=16, reduction="none")
    features, index = torch.randn(9, 8, requires_grad=True), torch.arange(9) * 5
    value = loss(features, index, bank)
    normalizer = loss.normalizer.clone()
    assert normalizer > 0
    value.sum().backward()
    assert features.grad.isfinite().all()
    loss(features, index, bank)
    assert torch.equal(loss.normalizer, normalizer)  # of the first batch, kept
    assert "normalizer" in loss.state_dict()
    with pytest.raises(ValueError, match="negatives: expected at least 1"):
        ssl_fast.InstanceDiscriminationLoss(negatives=0)


def test_the_normalizer_is_the_first_batchs_estimate():
    torch.manual_seed(0)
    bank, features, index = MemoryBank(50, 8, seed=1), torch.randn(9, 8), torch.arange(9)
    loss = ssl_fast.InstanceDiscriminationLoss(0.1, negatives=16)
    for batch in (torch.full_like(features, torch.nan), features, 2 * features.flip(1)):  # that of NaN is none
        torch.manual_seed(1)
        value = loss(batch, index, bank)
        torch.manual_seed(1)
        noise = torch.randint(50, (9, 16))
        if batch is features:
            first = functional.nce_normalizer(features, index, noise, bank, 0.1)
        assert loss.normalizer.isnan() if batch.isnan().all() else torch.equal(loss.normalizer, first)
        expected = functional.instance_nce(batch, index, noise, bank, loss.normalizer, 0.1)
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


def test_the_sampled_rows_are_gathered_once_a_step():
    loss, bank, x = ssl_fast.InstanceDiscriminationLoss(negatives=16), MemoryBank(50, 8, seed=1), torch.randn(9, 8)
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as ran:
            loss(x, torch.arange(9), bank)
        assert [event.count for event in ran.key_averages() if event.key == "aten::index_select"] == [1]


@on_every_backend
def test_instance_nce_is_the_reference(backend):
    device = device_of(backend)
    inputs = Inputs(backend, 20, 60, 9, torch.float32, "contiguous")
    index, noise = inputs.ids(0, 20, 60) % 60, (inputs.ids(1, 20 * 7, 60) % 60).view(20, 7)
    x = inputs.rows(0).requires_grad_()
    with ssl_fast.backend(backend):
        loss, stats = functional.instance_nce(x, index, noise, inputs.bank(), 30.0, 0.2, return_stats=True)
    wide = x.detach().double().requires_grad_()
    truth, expected = reference.instance_nce(
        wide, index, noise, inputs.bank().double(), torch.tensor(30.0, device=device), 0.2, return_stats=True
    )  # fmt: skip
    assert loss.item() == pytest.approx(truth.item(), rel=2e-6)
    for a, b in zip(stats, expected, strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-6)
    got, gradient = torch.autograd.grad(loss, x)[0], torch.autograd.grad(truth, wide)[0]
    torch.testing.assert_close(got.double(), gradient, rtol=1e-5, atol=1e-7)


def test_sampled_negatives_under_autocast_and_at_cold_temperatures():
    torch.manual_seed(0)
    bank, x, index = MemoryBank(100, 16, seed=0), torch.randn(8, 16), torch.arange(8)
    noise = torch.randint(100, (8, 20))
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(functional.instance_nce(x, index, noise, bank, 50.0, 0.07, reduction="none"))
    assert torch.equal(*results)
    loss = ssl_fast.InstanceDiscriminationLoss(0.001, negatives=20)
    assert loss(bank.bank[:8] + 0.01 * x, index, bank).isfinite()
    assert loss(x, index, bank).isfinite()
