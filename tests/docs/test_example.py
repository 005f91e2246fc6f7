"""The examples run as a user would run them, shortened."""

import pytest

from tests.helpers.examples import losses, number, run_example

pytestmark = pytest.mark.long


def test_product_variants_are_found_better_after_training():
    printed = run_example("product_variants", "--products", "512", "--epochs", "5")
    assert number("recall@1 after training", printed) > number("recall@1 before training", printed) + 0.1


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_the_tutorials_learn(name):
    printed = run_example(name, "--steps", "100", "--batch", "128")
    first, *_, last = losses(printed)
    assert last < first - 0.5
    after = number("kNN accuracy after training", printed)
    assert after > number("kNN accuracy of raw pixels", printed) + 0.05
    assert after > number("kNN accuracy before training", printed) + 0.1


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_captions_are_found_after_training(loss):
    printed = run_example("clip", "--loss", loss, "--steps", "100")
    first, *_, last = losses(printed)
    assert last < first / 2
    assert number("zero-shot accuracy after training", printed) > 0.7
