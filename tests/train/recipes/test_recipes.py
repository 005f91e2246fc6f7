"""The recipes hold the published numbers, and name the field that no run can have."""

import dataclasses

import pytest

from ssl_fast.train.recipes import RECIPES, MoCoV1Recipe, SimCLRRecipe, View

# From the papers and the originals' code; the scaled rate at the published batch.
PUBLISHED = {
    "simclr": {
        "batch_size": 4096,
        "scaled_learning_rate": 4.8,
        "temperature": 0.1,
        "epochs": 1000,
        "warm_up_epochs": 10,
        "optimizer": "lars",
        "weight_decay": 1e-6,
        "projection_dim": 128,
        "normalize_images": False,
    },
    "simclr-cifar": {
        "batch_size": 512,
        "scaled_learning_rate": 2.0,
        "temperature": 0.5,
        "weight_decay": 1e-4,
        "stem": "cifar",
    },
    "moco-v1": {
        "batch_size": 256,
        "scaled_learning_rate": 0.03,
        "temperature": 0.07,
        "epochs": 200,
        "milestones": (120, 160),
        "schedule": "step",
        "queue_size": 65536,
        "momentum": 0.999,
        "head_layers": 1,
        "optimizer": "sgd",
        "decay_all": True,
    },
    "moco-v2": {
        "temperature": 0.2,
        "schedule": "cosine",
        "schedule_by": "epoch",
        "head_layers": 2,
        "head_batch_norm": "none",
        "queue_size": 65536,
        "momentum": 0.999,
        "weight_decay": 1e-4,
        "warm_up_epochs": 0,
    },
    "moco-v3": {
        "batch_size": 4096,
        "scaled_learning_rate": 9.6,
        "temperature": 1.0,
        "momentum": 0.99,
        "head_width": 4096,
        "projection_dim": 256,
        "head_batch_norm": "all",
        "predictor_batch_norm": "hidden",
        "weight_decay": 1e-6,
    },
    "moco-v3-vit": {
        "scaled_learning_rate": 1.5e-4 * 16,
        "temperature": 0.2,
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "epochs": 300,
        "warm_up_epochs": 40,
        "head_layers": 3,
        "predictor_batch_norm": "all",
        "freeze_patch_projection": True,
    },
    "instdisc": {
        "batch_size": 256,
        "scaled_learning_rate": 0.03,
        "temperature": 0.07,
        "bank_momentum": 0.5,
        "noise": 4096,
    },
}
CROP = {"simclr": 0.08, "simclr-cifar": 0.08, "moco-v3-vit": 0.08}
ORDERS = {
    "simclr": ("crop", "flip", "jitter", "gray", "blur"),
    "moco-v1": ("crop", "gray", "jitter", "flip"),
    "moco-v2": ("crop", "jitter", "gray", "blur", "flip"),
    "moco-v3": ("crop", "jitter", "gray", "blur", "flip"),
    "instdisc": ("crop", "gray", "jitter", "flip"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    recipe = RECIPES[name]
    assert {field: getattr(recipe, field) for field in PUBLISHED[name]} == PUBLISHED[name]
    assert all(one.crop_scale == (CROP.get(name, 0.2), 1.0) for one in recipe.views)


def test_published_views():
    for name, order in ORDERS.items():
        assert RECIPES[name].view1.order == order
    first, second = RECIPES["moco-v3"].views
    assert (first.blur_p, second.blur_p) == (1.0, 0.1)
    assert "solarize" in second.order
    assert "solarize" not in first.order
    assert second.solarize_p == 0.2
    assert RECIPES["moco-v1"].view1.jitter_p == 1.0
    assert RECIPES["simclr"].view1.jitter == (0.8, 0.8, 0.8, 0.2)
    assert RECIPES["simclr-cifar"].view1.jitter == (0.4, 0.4, 0.4, 0.1)
    assert RECIPES["moco-v3"].view1.jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_run(name):
    recipe = RECIPES[name]
    recipe.check()
    assert recipe.method in ("simclr", "moco", "moco-v3", "instdisc")
    # Its class says what it is and where it is from.
    assert "(" in type(recipe).__doc__.splitlines()[0]


def test_learning_rate_scales():
    recipe = SimCLRRecipe(learning_rate=0.075, learning_rate_scale="sqrt", batch_size=1024, accumulate=4)
    assert recipe.scaled_learning_rate == pytest.approx(4.8)
    assert dataclasses.replace(recipe, learning_rate_scale="none").scaled_learning_rate == 0.075
    assert dataclasses.replace(recipe, learning_rate_scale="linear").scaled_learning_rate == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_momentum": 1.0}, r"^optimizer_momentum: expected a number from 0 to below 1, got 1.0"),
        ({"bn_groups": 7}, r"^bn_groups: expected a divisor of the batch of 256, got 7"),
        ({"micro_batch": 12}, r"^micro_batch: expected a multiple of the 8 bn_groups, got 12"),
        ({"warm_up_epochs": -1.0}, r"^warm_up_epochs: expected a finite number from 0, got -1.0"),
        ({"momentum": 2.0}, r"^momentum: expected a number from 0 to 1, got 2.0"),
        ({"view1": View(jitter=(0.4, 0.4, 0.4, 0.6))}, r"^view1.jitter: .* the hue's at most 0.5"),
        ({"view2": View(order=("crop", "warp"))}, r"^view2.order: expected some of crop, .* got .*warp"),
        ({"view2": View(zoom=(0.0, 1.0))}, r"^view2.zoom: expected a range of positive numbers, got"),
        ({"view2": View(noise=-0.1)}, r"^view2.noise: expected a finite number from 0, got -0.1"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MoCoV1Recipe(**changes).check()
