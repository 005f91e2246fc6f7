"""Recipes and a data set so small that a whole run takes a second.

They are not in conftest.py: a process that a test starts finds that name in tests/ first.
"""

import dataclasses

from ssl_fast.train.data import datasets
from ssl_fast.train.recipes import RECIPES

TRAIN_IMAGES, TEST_IMAGES = 104, 40  # 104: three batches of 32 and a rest
SMALL = {"epochs": 4, "batch_size": 32, "encoder": "small-8", "projection_dim": 16, "warm_up_epochs": 0.2}
SMALL_RECIPES = tuple(name for name in RECIPES if name.endswith("-small"))


def small_recipe(name: str, **changes):
    recipe = RECIPES[name]
    # A queue that is no multiple of the batch, so that its pointer goes round within a run.
    own = {"queue_size": 80, "head_width": 16, "predictor_width": 16}
    own = {field: value for field, value in own.items() if hasattr(recipe, field)}
    return dataclasses.replace(recipe, **{**SMALL, **own, **changes})


def limit_digits(monkeypatch, train_images, test_images):
    """Makes datasets.load return the first of the digits."""
    load = datasets.load

    def load_few(spec):
        whole = load(spec)
        counts = {"train": train_images, "test": test_images}
        parts = [(part, kind) for part in counts for kind in ("images", "labels")]
        few = {f"{part}_{kind}": getattr(whole, f"{part}_{kind}")[: counts[part]] for part, kind in parts}
        return dataclasses.replace(whole, **few)

    monkeypatch.setattr(datasets, "load", load_few)
