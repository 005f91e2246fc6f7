"""Optimisers and schedules, against their formulas."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from ssl_fast.train.engine.optimizer import optimizer_of, schedule_of
from ssl_fast.train.models.methods import build
from ssl_fast.train.recipes import RECIPES
from tests.helpers.small_runs import SMALL_RECIPES, small_recipe


def rates(recipe, steps, epochs):
    """The rate of every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.scaled_learning_rate)
    schedule, found = schedule_of(optimizer, recipe, steps), []
    for _ in range(steps * epochs):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_simclrs_schedule_warms_up_then_falls_to_zero():
    recipe = dataclasses.replace(RECIPES["simclr"], epochs=100)
    found = rates(recipe, 4, 100)
    assert found[:3] == pytest.approx([4.8 / 40, 4.8 * 2 / 40, 4.8 * 3 / 40])
    assert found[39] == found[40] == pytest.approx(4.8)
    assert found[220] == pytest.approx(2.4)  # half way from epoch 10 to 100
    assert found[-1] == pytest.approx(2.4 * (1 + math.cos(math.pi * (99.75 - 10) / 90)))


def test_moco_v1_falls_by_ten_at_its_milestones():
    found = rates(RECIPES["moco-v1"], 2, 200)
    assert found[: 2 * 120] == [0.03] * 240
    assert found[240:320] == pytest.approx([0.003] * 80)
    assert found[320:] == pytest.approx([0.0003] * 80)


def test_moco_v2s_cosine_changes_between_epochs_only():
    found = rates(RECIPES["moco-v2"], 3, 200)
    assert found[:3] == [0.03] * 3
    by_epoch = [0.015 * (1 + math.cos(math.pi * epoch / 200)) for epoch in range(200)]
    assert found == pytest.approx([rate for rate in by_epoch for _ in range(3)])


def test_a_short_run_warms_up_in_half_of_it():
    found = rates(dataclasses.replace(RECIPES["simclr-small"], epochs=2), 4, 2)
    assert max(found) == pytest.approx(2e-3)
    assert found[0] == pytest.approx(0.5e-3)


@pytest.mark.parametrize("name", SMALL_RECIPES)
def test_the_optimizer_gets_no_key_parameter_and_decays_no_bias(name):
    recipe = small_recipe(name, weight_decay=0.3)
    method = build(recipe, channels=1, image_size=24, images=50)
    names = {parameter: name for name, parameter in method.named_parameters()}
    decayed, others = optimizer_of(method, recipe).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0)
    trained = {names[x] for group in (decayed, others) for x in group["params"]}
    assert trained == {name for name in names.values() if not name.startswith("key_")}
    assert all(x.dim() <= 1 for x in others["params"])
    assert all(x.dim() > 1 for x in decayed["params"])
    (whole,) = optimizer_of(method, dataclasses.replace(recipe, decay_all=True)).param_groups
    assert {names[x] for x in whole["params"]} == trained


def test_lars_scales_weights_by_their_norm_and_leaves_biases():
    layer = nn.Linear(3, 4)
    recipe = small_recipe(
        "simclr-small", optimizer="lars", learning_rate=0.5, weight_decay=0.01, lars_trust=0.02, decay_all=False
    )
    optimizer = optimizer_of(layer, recipe)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    gradient = layer.weight.grad
    ratio = 0.02 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
    optimizer.step()
    torch.testing.assert_close(layer.weight, weight - 0.5 * ratio * (gradient + 0.01 * weight))
    torch.testing.assert_close(layer.bias, bias - 0.5 * layer.bias.grad)


def test_sgd_is_mocos():
    method = nn.Linear(3, 4)
    (group,) = optimizer_of(method, RECIPES["moco-v2"]).param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.03, 0.9, 1e-4, False)
