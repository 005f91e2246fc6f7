"""Augmentation: a draw for each image, from the generator given only, in range."""

import dataclasses

import pytest
import torch

from ssl_fast.train import data
from ssl_fast.train.augment import Augment


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_views_of_one_image_differ_image_by_image(digits):
    # The same image eight times: all that differs is the draw.
    images = digits.train_images[:1].expand(8, -1, -1, -1)
    views = Augment(digits)(images, generator(0))
    assert views.shape == (8, 1, 24, 24)
    assert views.dtype == torch.float32
    assert 0 <= views.min() < views.max() <= 1
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(views) for b in views[:i])


def test_randomness_is_the_generators(digits):
    augment, images = Augment(digits), digits.train_images[:5]
    torch.manual_seed(1)
    one = augment(images, generator(0))
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(augment(images, generator(0)), one)
    assert not torch.equal(augment(images, generator(1)), one)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_enlarges_and_pads(digits):
    plain = Augment(digits).plain(digits.test_images[:7])
    assert plain.shape == (7, 1, 24, 24)
    assert plain[:, :, :4].abs().max() == plain[:, :, -4:].abs().max() == 0
    # Four pixels for one: the mean of the enlarged image is the image's, but for its border.
    inner = plain[:, :, 4:20, 4:20]
    torch.testing.assert_close(
        inner.mean((1, 2, 3)), digits.test_images[:7].float().mean((1, 2, 3)) / 255, rtol=0.02, atol=0
    )


def test_test_images_are_moved_only(digits):
    augment, images = Augment(digits), digits.test_images[:50]
    moved, plain = augment.transform_test(images, generator(0)), augment.plain(images)
    assert (moved - plain).abs().mean() > 0.02
    # No noise on what is black, and brightness stays: a stroke's white is white.
    assert ((moved == 0).float().mean((1, 2, 3)) > 0.3).all()
    assert (moved.amax((1, 2, 3)) > 0.8 * plain.amax((1, 2, 3))).all()


def test_flip_only_where_it_suits(digits):
    # Lit on its left half only: the brighter half tells a flip, whatever the rotation of up to 30 degrees.
    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    for flip in (False, True):
        views = Augment(dataclasses.replace(digits, flip=flip))(images, generator(0))
        left = (views[..., :12].sum((1, 2, 3)) > views[..., 12:].sum((1, 2, 3))).float().mean()
        assert 0.3 < left < 0.7 if flip else left > 0.9
