"""SimCLR and MoCo: the order of a step, against the same step written out in plain PyTorch."""

import copy
import math

import pytest
import torch
from conftest import small_recipe
from torch.nn.functional import cross_entropy, normalize

from ssl_fast.train import loop
from ssl_fast.train.methods import METHODS


def method_and_views(name):
    method = METHODS[name](small_recipe(name), channels=1)
    return method, *torch.rand(2, 16, 1, 24, 24)


def test_simclr_is_the_textbook_step():
    method, view1, view2 = method_and_views("simclr")
    twin = copy.deepcopy(method)
    loss, stats = method.loss(view1, view2)
    loss.backward()
    z = normalize(twin.head(twin.encoder(torch.cat([view1, view2]))))
    logits = (z @ z.T / twin.temperature).fill_diagonal_(float("-inf"))
    expected = cross_entropy(logits, torch.arange(32).roll(16))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert 0 <= stats.top1 <= stats.top5 <= 1
    for parameter, other in zip(method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_moco_is_the_papers_step():
    method, view1, view2 = method_and_views("moco-v2")
    # As after some training: the two encoders differ.
    with torch.no_grad():
        for parameter in [*method.encoder.parameters(), *method.head.parameters()]:
            parameter += 0.1 * torch.randn_like(parameter)
    twin = copy.deepcopy(method)
    loss, _ = method.loss(view1, view2)
    loss.backward()

    query = normalize(twin.head(twin.encoder(view1)))
    with torch.no_grad():
        for key_part, part in ((twin.key_encoder, twin.encoder), (twin.key_head, twin.head)):
            for t, s in zip(key_part.parameters(), part.parameters(), strict=True):
                t.copy_(twin.momentum * t + (1 - twin.momentum) * s)
        key = normalize(twin.key_head(twin.key_encoder(view2)))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ twin.queue.queue.T], 1) / twin.temperature
    expected = cross_entropy(logits, torch.zeros(16, dtype=torch.long))
    expected.backward()

    torch.testing.assert_close(loss, expected)
    for name, parameter in method.named_parameters():
        other = twin.get_parameter(name)
        if name.startswith("key_"):
            assert parameter.grad is None
            torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
        else:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)
    # The keys went into the queue after the loss had seen it as it was.
    torch.testing.assert_close(method.queue.queue[:16], key)
    assert torch.equal(method.queue.queue[16:], twin.queue.queue[16:])
    assert method.queue.queue_ptr == 16


def test_moco_begins_with_equal_encoders():
    method, *_ = method_and_views("moco-v2")
    for part, key_part in ((method.encoder, method.key_encoder), (method.head, method.key_head)):
        for name, value in part.state_dict().items():
            assert torch.equal(value, key_part.state_dict()[name]), name


@pytest.mark.parametrize("name", METHODS)
def test_the_optimizer_gets_no_key_parameter_and_decays_no_bias(name):
    method, *_ = method_and_views(name)
    names = {parameter: name for name, parameter in method.named_parameters()}
    decayed, others = loop._optimizer(method, small_recipe(name, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0)
    trained = {names[x] for group in (decayed, others) for x in group["params"]}
    assert trained == {name for name in names.values() if not name.startswith("key_")}
    assert all(x.dim() <= 1 for x in others["params"])
    assert all(x.dim() > 1 for x in decayed["params"])


def test_the_schedule_warms_up_then_falls_to_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = loop._schedule(optimizer, 100)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])  # 5 % of the steps
    assert rates[5] == pytest.approx(2.0)
    assert rates[52] == pytest.approx(1 + math.cos(math.pi * 47 / 95))
    assert rates[100] == pytest.approx(0, abs=1e-12)
