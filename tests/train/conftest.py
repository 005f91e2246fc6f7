"""A data set so small that whole runs take a second."""

import dataclasses
import signal

import pytest
import torch

from ssl_fast.train import data
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


@pytest.fixture(autouse=True)
def ctrl_c_raises():
    """As in a terminal: a shell's background job, and what it starts, ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks of a few channels: threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
