"""The batched views and torchvision's of single images have one distribution."""

import functools

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ssl_fast.train.data import batch_augmentation, datasets, image_augmentation
from ssl_fast.train.data.batch_augmentation import Augment
from ssl_fast.train.recipes import View, moco_v1, moco_v2, moco_v3, simclr, small

SIZE = 24  # of the views; the images have 32 pixels, so that crops shrink as well as enlarge
SINGLE = {
    "crop": View(order=("crop",)),
    "large crop": View(order=("crop",), crop_scale=(0.2, 1.0)),
    "flip": View(order=("flip",)),
    "jitter": View(order=("jitter",)),
    "hue": View(order=("jitter",), jitter=(0.0, 0.0, 0.0, 0.4), jitter_p=1.0),
    "gray": View(order=("gray",)),
    "blur": View(order=("blur",)),
    "solarize": View(order=("solarize",)),
    "affine": View(order=("affine",)),
    "noise": View(order=("noise",)),
    # Saturation after grey does nothing, a brightness after an inversion is another one.
    "gray, jitter": View(order=("gray", "jitter"), jitter=(0.0, 0.0, 0.8, 0.5), jitter_p=1.0, gray_p=0.5),
    "jitter, gray": View(order=("jitter", "gray"), jitter=(0.0, 0.0, 0.8, 0.5), jitter_p=1.0, gray_p=0.5),
    "solarize, blur": View(order=("solarize", "blur"), solarize_p=0.8, blur_p=0.8),
    "blur, solarize": View(order=("blur", "solarize"), solarize_p=0.8, blur_p=0.8),
}
PUBLISHED = {
    "simclr": simclr.VIEW,
    "moco-v1": moco_v1.VIEW,
    "moco-v2": moco_v2.VIEW,
    "moco-v3 first": moco_v3.FIRST_VIEW,
    "moco-v3 second": moco_v3.SECOND_VIEW,
    "simclr-cifar": simclr.CIFAR_VIEW,
}
VIEWS = SINGLE | PUBLISHED
# Views that differ from those above in one number or in the order: the test must tell them apart.
MUTANTS = {
    "crop": View(order=("crop",), crop_scale=(0.2, 1.0)),
    "flip": View(order=("flip",), flip_p=0.35),
    "gray": View(order=("gray",), gray_p=0.3),
    "solarize": View(order=("solarize",), solarize_p=0.3),
    "solarize, blur": SINGLE["blur, solarize"],
}
# These need more draws.
FINE_MUTANTS = {
    "crop": View(order=("crop",), crop_scale=(0.12, 1.0)),
    "large crop": View(order=("crop",), crop_scale=(0.2, 1.0), crop_ratio=(0.6, 1.5)),
    "flip": View(order=("flip",), flip_p=0.4),
    "jitter": View(order=("jitter",), jitter_p=0.6),
    "hue": View(order=("jitter",), jitter=(0.0, 0.0, 0.0, 0.3), jitter_p=1.0),
    "blur": View(order=("blur",), blur_p=0.6),
    "noise": View(order=("noise",), noise=0.09),
    "affine": View(order=("affine",), shift=0.15),
    "gray, jitter": SINGLE["jitter, gray"],
}
MANY = 1500  # draws of each image
Z = 4.7  # largest deviation: some thousand numbers are compared, of which one in 400,000 passes it by chance


@functools.cache
def images():
    """Three images in colour, (3, 3, 32, 32) uint8: slopes, discs and stripes, all brighter on the right."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    slopes = torch.stack([columns, 0.7 * rows, 0.5 * (1 - columns) * rows])
    disc = ((rows - 0.4) ** 2 + (columns - 0.7) ** 2 < 0.07).float()
    discs = torch.stack([0.1 + 0.8 * disc, 0.3 + 0.3 * columns, 0.6 - 0.5 * disc])
    stripes = ((columns * 8).floor() % 2) * columns
    striped = torch.stack([0.2 + 0.7 * stripes, 0.9 - 0.8 * rows, 0.2 + 0.2 * stripes])
    return (torch.stack([slopes, discs, striped]) * 255).round().to(torch.uint8)


@functools.cache
def batched(chosen, count):
    """(3, count, features): views of each image, drawn by the batch."""
    x = images()
    labels = torch.zeros(3, dtype=torch.int64)
    dataset = datasets.Dataset("three", x, labels, x, labels, 32, flip=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    # Without a crop the views have the images' size: only a crop resizes alike on both ways.
    size = SIZE if "crop" in chosen.order else 32
    many = x.repeat_interleave(count, 0)
    views = Augment(dataset, chosen, normalize=False, image_size=size)(many, torch.Generator().manual_seed(1))
    return features(views).view(3, count, -1)


@functools.cache
def one_by_one(chosen, count):
    """(3, count, features): views of each image by torchvision, from floats: without PIL's rounding."""
    transform = image_augmentation.transform(chosen, SIZE, None, flip=True)
    if "crop" not in chosen.order:
        transform.transforms = transform.transforms[2:]  # the middle of the image
    torch.manual_seed(2)
    views = [transform(image) for image in images() / 255 for _ in range(count)]
    return features(torch.stack(views)).view(3, count, -1)


def features(x):
    """(N, 3, H, W) to (N, F): numbers in which every operation shows."""
    pixels = x.flatten(2)
    levels = torch.tensor([0.05, 0.5, 0.95])
    half = x.shape[3] // 2
    numbers = [
        pixels.mean(2),
        pixels.std(2),
        pixels.mean(1).quantile(levels, 1).T,
        (x.amax(1) - x.amin(1)).mean((1, 2))[:, None],  # colour
        (x[..., :half].mean(3) - x[..., half:].mean(3)).mean(2),  # left and right
        x.diff(dim=3).square().mean((2, 3)).sqrt(),  # sharpness
        x[:, :, :: x.shape[2] - 1, :: x.shape[3] - 1].flatten(1),  # the corners
    ]
    return torch.cat(numbers, 1).double()


def deviations(one, other):
    """How many standard errors lie between the means, and between the variances, of the features: (2, images + 1, F).

    The last row is of the sum over the images, which tells less difference from chance.
    """
    result = []
    for power in (1, 2):
        a, b = ((f - f.mean(1, keepdim=True)) ** 2 if power == 2 else f for f in (one, other))
        difference = a.mean(1) - b.mean(1)
        error = a.var(1) / a.shape[1] + b.var(1) / b.shape[1]
        difference = torch.cat([difference, difference.sum(0, keepdim=True)])
        error = torch.cat([error, error.sum(0, keepdim=True)])
        # A number that does not change has no error: floats' rounding remains.
        result.append(difference.abs() / (error.sqrt() + 1e-6))
    return torch.stack(result)


def few(name):
    """Draws of each image in the fast suite: torchvision takes milliseconds for the hue of one."""
    return 100 if "jitter" in VIEWS[name].order else 400


@pytest.mark.long
@pytest.mark.parametrize("name", VIEWS)
def test_same_distribution(name):
    count = few(name)
    assert deviations(batched(VIEWS[name], count), one_by_one(VIEWS[name], count)).max() < Z


@pytest.mark.parametrize("chosen", [View(), View(crop_scale=(0.2, 1.0)), View(crop_ratio=(0.5, 4.0))])
def test_same_boxes(chosen):
    count = 8000  # of the boxes themselves: an image hardly shows their exact shape and place.
    x = images()[:1].float()
    torchvisions = v2.RandomResizedCrop(SIZE, chosen.crop_scale, chosen.crop_ratio)
    drawn = [torchvisions.make_params([x[0]]) for _ in range(count)]
    theirs = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in drawn])
    boxes = batch_augmentation._boxes(x.expand(count, -1, -1, -1), chosen, torch.Generator().manual_seed(1))
    numbers = []
    for top, left, height, width in (theirs.T.double(), torch.stack(boxes).double()):
        below, right = 32 - top - height, 32 - left - width
        shape = [height, width, height * width, (width / height).log()]
        numbers.append(torch.stack([*shape, top, left, top - below, left - right], 1)[None])
    assert deviations(*numbers).max() < Z


@pytest.mark.parametrize("name", MUTANTS)
def test_tells_a_wrong_view(name):
    count = few(name)
    assert deviations(batched(MUTANTS[name], count), one_by_one(VIEWS[name], count)).max() > Z


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_same_distribution_of_many(name):
    assert deviations(batched(VIEWS[name], MANY), one_by_one(VIEWS[name], MANY)).max() < Z


@pytest.mark.slow
@pytest.mark.parametrize("name", FINE_MUTANTS)
def test_tells_a_slightly_wrong_view(name):
    assert deviations(batched(FINE_MUTANTS[name], MANY), one_by_one(VIEWS[name], MANY)).max() > Z


@pytest.mark.parametrize("name", VIEWS)
def test_pil_draws_the_same_and_rounds(name):
    transform = image_augmentation.transform(VIEWS[name], SIZE, None, flip=True)
    for seed in range(3):
        for image in images():
            views = []
            for given in (image / 255, functional.to_pil_image(image)):
                torch.manual_seed(seed)
                views.append(transform(given))
            # PIL rounds down after each operation, which the next ones enlarge; a solarisation turns some pixels over.
            difference = views[0] - views[1]
            assert (difference.abs() < 0.06).float().mean() > 0.9
            assert difference.mean().abs() < 0.02


def test_view_of_an_image():
    image = Image.new("RGB", (50, 37), (255, 0, 51))
    untouched = View(order=("crop", "flip"))
    result = image_augmentation.transform(untouched, 16, None, flip=True)(image)
    assert type(result) is torch.Tensor
    assert (result.shape, result.dtype) == ((3, 16, 16), torch.float32)
    torch.testing.assert_close(result[:, 8, 8], torch.tensor([1.0, 0.0, 0.2]))
    normalized = image_augmentation.transform(untouched, 16, ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)), flip=True)(image)
    torch.testing.assert_close(normalized[:, 8, 8], torch.tensor([5.0, -2.5, -1.0]))
    without_crop = image_augmentation.transform(small.VIEW, 16, None, flip=True)(image)
    assert without_crop.shape == (3, 16, 16)


def test_flip_only_where_it_suits():
    image = functional.to_pil_image(images()[0])
    always = View(order=("flip",), flip_p=1.0)
    flipped, not_flipped = (image_augmentation.transform(always, 32, None, flip)(image) for flip in (True, False))
    assert torch.equal(flipped, not_flipped.flip(2))
    assert not torch.equal(flipped, not_flipped)


def test_plain_is_the_middle():
    # Resized to 256/224 of 28 pixels, of which the middle remains: a frame of 2 pixels is lost.
    image = Image.new("RGB", (64, 32), (255, 255, 255))
    image.paste((0, 0, 0), (18, 2, 46, 30))
    middle = image_augmentation.plain_transform(28, None)(image)
    assert middle.shape == (3, 28, 28)
    assert middle.max() == 0
    wider = image_augmentation.plain_transform(32, None)(image)
    assert wider.shape == (3, 32, 32)
    normalized = image_augmentation.plain_transform(28, ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)))(image)
    torch.testing.assert_close(normalized[:, 0, 0], torch.tensor([-5.0, -2.5, -0.5 / 0.3]))
