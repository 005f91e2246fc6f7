"""A data set so small that whole runs take a second."""

import dataclasses

import pytest

from ssl_fast.train import data
from ssl_fast.train.recipes import RECIPES

TRAIN_IMAGES, TEST_IMAGES = 104, 40  # 104: three batches of 32 and a rest
SMALL = {"epochs": 4, "batch_size": 32, "width": 8, "projection_dim": 16}


def small_recipe(method_name: str, **changes):
    # A queue that is no multiple of the batch, so that its pointer goes round within a run.
    own = {"queue_size": 80} if method_name == "moco-v2" else {}
    return RECIPES[method_name](**{**SMALL, **own, **changes})


def limit_digits(monkeypatch, train_images, test_images):
    """Makes data.load return the first of the digits."""
    load = data.load

    def load_few(spec):
        whole = load(spec)
        counts = {"train": train_images, "test": test_images}
        parts = [(part, kind) for part in counts for kind in ("images", "labels")]
        few = {f"{part}_{kind}": getattr(whole, f"{part}_{kind}")[: counts[part]] for part, kind in parts}
        return dataclasses.replace(whole, **few)

    monkeypatch.setattr(data, "load", load_few)


@pytest.fixture
def few_digits(monkeypatch):
    limit_digits(monkeypatch, TRAIN_IMAGES, TEST_IMAGES)
