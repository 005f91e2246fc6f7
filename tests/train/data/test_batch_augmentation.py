"""Augmentation: a draw for each image, from the generator given only; torchvision's formulas; what each view does."""

import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ssl_fast.train.data import batch_augmentation, datasets
from ssl_fast.train.data.batch_augmentation import Augment
from ssl_fast.train.recipes import View, moco_v1, moco_v2, moco_v3, simclr, small

FULL_VIEWS = {
    "simclr": simclr.VIEW,
    "moco-v1": moco_v1.VIEW,
    "moco-v2": moco_v2.VIEW,
    "moco-v3 first": moco_v3.FIRST_VIEW,
    "moco-v3 second": moco_v3.SECOND_VIEW,
    "simclr-cifar": simclr.CIFAR_VIEW,
    "small": small.VIEW,
}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def colours(count=6, size=20, **changes):
    """A data set of random images in colour."""
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    normalization = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return datasets.Dataset("colours", images, labels, images, labels, size, flip=True, **normalization | changes)


def test_views_of_one_image_differ_image_by_image(digits):
    # The same image eight times: all that differs is the draw.
    images = digits.train_images[:1].expand(8, -1, -1, -1)
    views = Augment(digits, small.VIEW, normalize=False)(images, generator(0))
    assert views.shape == (8, 1, 24, 24)
    assert views.dtype == torch.float32
    assert 0 <= views.min() < views.max() <= 1
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(views) for b in views[:i])


@pytest.mark.parametrize("name", FULL_VIEWS)
def test_randomness_is_the_generators(name):
    dataset = colours()
    both, images = Augment(dataset, FULL_VIEWS[name], normalize=True), dataset.train_images
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = both(images, generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(both(images, generator(0)), one)
    assert not torch.equal(both(images, generator(1)), one)
    assert torch.equal(images, dataset.train_images)


def test_every_size_is_its_own(digits):
    for dataset, own in ((digits, 24), (colours(), 20)):
        for chosen in (small.VIEW, simclr.VIEW):
            for size in (0, 12, 33):
                both = Augment(dataset, chosen, normalize=False, image_size=size)
                shape = (3, dataset.channels, size or own, size or own)
                assert both(dataset.train_images[:3], generator(0)).shape == shape
                assert both.plain(dataset.train_images[:3]).shape == shape
                assert both.transform_test(dataset.train_images[:3], generator(0)).shape == shape


def test_plain_enlarges_and_pads(digits):
    plain = Augment(digits, View(), normalize=False).plain(digits.test_images[:7])
    assert plain.shape == (7, 1, 24, 24)
    assert plain[:, :, :4].abs().max() == plain[:, :, -4:].abs().max() == 0
    # Four pixels for one: the mean of the enlarged image is the image's, but for its border.
    inner = plain[:, :, 4:20, 4:20]
    torch.testing.assert_close(
        inner.mean((1, 2, 3)), digits.test_images[:7].float().mean((1, 2, 3)) / 255, rtol=0.02, atol=0
    )


def test_normalized_by_mean_and_deviation():
    dataset = colours()
    expected = v2.functional.normalize(dataset.train_images / 255, list(dataset.mean), list(dataset.std))
    normalized, not_normalized = (Augment(dataset, simclr.VIEW, normalize=value) for value in (True, False))
    torch.testing.assert_close(normalized.plain(dataset.train_images), expected)
    for call in (Augment.__call__, Augment.transform_test):
        one, other = (call(both, dataset.train_images, generator(0)) for both in (normalized, not_normalized))
        torch.testing.assert_close(one, v2.functional.normalize(other, list(dataset.mean), list(dataset.std)))


def test_test_images_are_moved_only(digits):
    both, images = Augment(digits, small.VIEW, normalize=False), digits.test_images[:50]
    moved, plain = both.transform_test(images, generator(0)), both.plain(images)
    assert (moved - plain).abs().mean() > 0.02
    # No noise on what is black, and brightness stays: a stroke's white is white.
    assert ((moved == 0).float().mean((1, 2, 3)) > 0.3).all()
    assert (moved.amax((1, 2, 3)) > 0.8 * plain.amax((1, 2, 3))).all()


def test_flip_only_where_it_suits(digits):
    # Lit on its left half only: the brighter half tells a flip, whatever the rotation of up to 30 degrees.
    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    for flip in (False, True):
        dataset = dataclasses.replace(digits, flip=flip)
        views = Augment(dataset, small.VIEW, normalize=False)(images, generator(0))
        left = (views[..., :12].sum((1, 2, 3)) > views[..., 12:].sum((1, 2, 3))).float().mean()
        assert 0.3 < left < 0.7 if flip else left > 0.9


def test_grey_images_have_no_colour_to_jitter(digits):
    images = digits.train_images[:40]
    colour_only = View(order=("jitter", "gray"), jitter=(0, 0, 0.8, 0.2), jitter_p=1.0, gray_p=1.0)
    both = Augment(digits, colour_only, normalize=False)
    assert torch.equal(both(images, generator(0)), both.plain(images))


@pytest.mark.parametrize("name", FULL_VIEWS)
def test_never_waits_for_the_device(name, digits):
    # Fake tensors have no values: whatever asks for one, .item(), nonzero or an index by bools, raises.
    for dataset in (digits, colours()):
        both = Augment(dataset, FULL_VIEWS[name], normalize=True)
        with FakeTensorMode(allow_non_fake_inputs=True):
            images = torch.empty((4, *dataset.train_images.shape[1:]), dtype=torch.uint8)
            assert both(images, generator(0)).shape == (4, dataset.channels, *(dataset.image_size,) * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FULL_VIEWS)
def test_never_waits_for_a_gpu(name):
    dataset = colours()
    images, draws = dataset.train_images.cuda(), torch.Generator("cuda").manual_seed(0)
    both = Augment(dataset, FULL_VIEWS[name], normalize=True)
    both(images, draws)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = both(images, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert views.isfinite().all()


class TestFormulas:
    """The same numbers as torchvision's for the same draw."""

    x = torch.rand(8, 3, 21, 26, generator=torch.Generator().manual_seed(0))

    def each(self, function, *values):
        """torchvision's function of each image and its values."""
        draws = zip(*(value.tolist() for value in values), strict=True)
        return torch.stack([function(image, *draw) for image, draw in zip(self.x, draws, strict=True)])

    def close(self, one, other):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-6)

    def test_hue(self):
        shift = torch.linspace(-0.5, 0.5, 8)
        self.close(batch_augmentation.shift_hue(self.x, shift), self.each(functional.adjust_hue, shift))
        grey = torch.full((1, 3, 2, 2), 0.3)
        assert torch.equal(batch_augmentation.shift_hue(grey, torch.tensor([0.2])), grey)

    @pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
    def test_blends(self, kind):
        strengths = [0.9 if kind == name else 0 for name in ("brightness", "contrast", "saturation")]
        chosen = View(jitter=(*strengths, 0.0), jitter_p=1.0)
        factor = 0.1 + 1.8 * torch.stack([torch.rand(8, generator=draws) for draws in [generator(3)] for _ in range(3)])
        expected = self.each(getattr(functional, f"adjust_{kind}"), factor[strengths.index(0.9)])
        self.close(batch_augmentation.jitter(self.x, chosen, 0, generator(3)), expected)

    def test_blur(self):
        sigma = torch.linspace(0.1, 2, 8)
        expected = self.each(lambda image, s: functional.gaussian_blur(image, [5, 5], [s, s]), sigma)
        self.close(batch_augmentation.gaussian_blur(self.x, sigma, 5), expected)

    def test_gray_and_solarize(self):
        always = View(gray_p=1.0, solarize_p=1.0)
        self.close(batch_augmentation.gray(self.x, always, 0, generator(0)), functional.rgb_to_grayscale(self.x, 3))
        self.close(batch_augmentation.solarize(self.x, always, 0, generator(0)), functional.solarize(self.x, 0.5))

    @pytest.mark.parametrize("size", [6, 24, 50])
    @pytest.mark.parametrize("scale", [(0.01, 1.0), (0.9, 1.0)])
    def test_crop(self, scale, size):
        chosen = View(crop_scale=scale)
        boxes = batch_augmentation._boxes(self.x, chosen, generator(0))
        expected = self.each(
            lambda image, *box: functional.resized_crop(image, *map(int, box), [size, size], antialias=True), *boxes
        )
        self.close(batch_augmentation.crop(self.x, chosen, size, generator(0)), expected)

    @pytest.mark.parametrize(("height", "width"), [(6, 40), (40, 6), (20, 20), (1, 1)])
    @pytest.mark.parametrize("ratio", [(1.0, 1.0), (0.5, 0.8), (3.0, 5.0)])
    def test_no_box_fits(self, height, width, ratio):
        # All of the area never fits with another ratio: what remains is the box in the middle.
        chosen = View(crop_scale=(1.0, 1.0), crop_ratio=ratio)
        image = torch.zeros(1, 3, height, width)
        expected = v2.RandomResizedCrop(4, chosen.crop_scale, ratio).make_params([image])
        got = [value.int().item() for value in batch_augmentation._boxes(image, chosen, generator(0))]
        assert got == [expected[name] for name in ("top", "left", "height", "width")]


@pytest.mark.parametrize(("size", "width"), [(8, 3), (24, 3), (32, 3), (96, 9), (100, 11), (224, 23)])
def test_blur_covers_a_tenth(size, width):
    assert batch_augmentation.blur_width(size) == width


def test_jitter_orders_are_all_alike():
    # What brightness, contrast and saturation do in each order, without a hue and with one that turns nothing much.
    x = torch.rand(1, 3, 4, 4).expand(6000, -1, -1, -1)
    for hue in (0.0, 1e-7):
        chosen = View(jitter=(0.8, 0.8, 0.8, hue), jitter_p=1.0)
        seen = {}
        blend = batch_augmentation._blend

        def record(y, kind, factors, kinds, active, seen=seen, blend=blend):
            slots = seen.setdefault("slots", [])
            slots.append(torch.where(active, kind, 3) if active is not None else kind)
            return blend(y, kind, factors, kinds, active)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_augmentation, "_blend", record)
            batch_augmentation.jitter(x, chosen, 4, generator(0))
        slots = torch.stack(seen["slots"], 1)
        assert slots.shape[1] == (6 if hue else 3)
        orders, counts = slots.unique(dim=0, return_counts=True)
        # Each kind once; with the hue also four places of it.
        assert all(sorted(kind for kind in row if kind < 3) == [0, 1, 2] for row in orders.tolist())
        assert len(orders) == (24 if hue else 6)
        assert (counts / counts.float().mean() - 1).abs().max() < 5 / counts.float().mean().sqrt()
