"""Random views of a whole batch at once, on its device; every image has its own random numbers.

The formulas and distributions of the operations are those of torchvision (transforms.v2 on float tensors). No operation
reads a value back from the device: torch.where picks which images change. So the host never waits for a GPU here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..recipes.view import Operation, View
from .datasets import Dataset

CROP_ATTEMPTS = 10  # boxes that are drawn until one lies in the image, as in torchvision
GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue: the brightness that the eye sees (ITU-R BT.601)
# On the CPU a batch is augmented in parts of this many values, which fit its caches: three times as fast.
CPU_VALUES = 200_000
BRIGHTNESS, CONTRAST, SATURATION = range(3)  # kinds of _blend


class Augment:
    """Makes the input of an encoder from images of a data set: (N, C, H, W) uint8 to (N, C, S, S) float32.

    Random numbers come only from the generator that is passed, so that the same state gives the same result.

    Args:
        dataset: Of the images: its image size, flips, mean and deviation, and by how much they are enlarged.
        view: What `__call__` and `transform_test` draw.
        normalize: Whether to subtract the data set's mean and divide by its deviation; without it values are in [0, 1].
        image_size: The side S; 0 takes the data set's own.
    """

    def __init__(self, dataset: Dataset, view: View, normalize: bool, image_size: int = 0):
        self.view = view
        self.image_size = image_size or dataset.image_size
        self.order = tuple(operation for operation in view.order if operation != "flip" or dataset.flip)
        self._own_size, self._enlarge = dataset.image_size, dataset.enlarge
        self._channels = list(zip(dataset.mean, dataset.std, strict=True)) if normalize else []

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Draws a view of each image: the operations of the view in their order.

        Args:
            images: (N, C, H, W) uint8.
            generator: On the images' device.

        Returns:
            (N, C, S, S) float32.
        """
        if not images.is_cpu:
            return self._view(images, generator)
        part = max(1, CPU_VALUES // (images.shape[1] * self.image_size**2))
        return torch.cat([self._view(some, generator) for some in images.split(part)])

    def _view(self, images: Tensor, generator: Generator) -> Tensor:
        x = self._prepared(images) if "crop" in self.order else self._resized(images)
        for operation in self.order:
            x = OPERATIONS[operation](x, self.view, self.image_size, generator)
        return self._normalized(x)

    def transform_test(self, images: Tensor, generator: Generator) -> Tensor:
        """Shifts, zooms and rotates each image as the view does, and nothing else, to test how invariant an encoder is.

        Arguments and result are those of `__call__`.
        """
        return self._normalized(affine(self._resized(images), self.view, self.image_size, generator))

    def plain(self, images: Tensor) -> Tensor:
        """Returns the images as they are, in the encoder's size: (N, C, H, W) uint8 to (N, C, S, S) float32."""
        return self._normalized(self._resized(images))

    def _prepared(self, images: Tensor) -> Tensor:
        """Scales to [0, 1], enlarges and pads the images: (N, C, s, s) float32, where s is the data set's own size."""
        x = images.float() / 255
        if self._enlarge != 1:
            x = F.interpolate(x, scale_factor=self._enlarge, mode="bilinear", align_corners=False)
        rows, columns = self._own_size - x.shape[2], self._own_size - x.shape[3]
        if not rows and not columns:
            return x
        top, left = rows // 2, columns // 2
        return F.pad(x, (left, columns - left, top, rows - top))

    def _resized(self, images: Tensor) -> Tensor:
        x = self._prepared(images)
        if self.image_size == self._own_size:
            return x
        size = (self.image_size, self.image_size)
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def _normalized(self, x: Tensor) -> Tensor:
        # mean and std stay Python numbers: as tensors they would be copied to the device, and the host would wait.
        for channel, (mean, std) in enumerate(self._channels):
            x[:, channel].sub_(mean).div_(std)
        return x


def crop(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Cuts a random box out of each image and resizes it to (N, C, size, size)."""
    height, width = x.shape[2:]
    top, left, rows, columns = _boxes(x, view, generator)
    vertical = _resampling(top, rows, height, size)
    horizontal = _resampling(left, columns, width, size)
    return vertical[:, None] @ x @ horizontal[:, None].mT


def _boxes(x: Tensor, view: View, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws top, left, height and width of a box in each image, (N,) whole numbers as floats.

    The box's share of the area is uniform, and so is the logarithm of its width / height. Of CROP_ATTEMPTS boxes the
    first that lies in the image is taken; if none does, the largest box in the middle whose ratio is allowed.
    """
    count, _, height, width = x.shape
    shape = (count, CROP_ATTEMPTS)
    area = height * width * _uniform(x, shape, *view.crop_scale, generator)
    low, high = view.crop_ratio
    ratio = _uniform(x, shape, math.log(low), math.log(high), generator).exp()
    columns, rows = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    valid = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = valid.int().argmax(1, keepdim=True)
    found = valid.any(1)
    most_rows, most_columns = min(height, round(width / low)), min(width, round(height * high))
    rows = torch.where(found, rows.gather(1, first)[:, 0], most_rows)
    columns = torch.where(found, columns.gather(1, first)[:, 0], most_columns)
    top = _uniform(x, (count,), 0, 1, generator).mul(height - rows + 1).floor().minimum(height - rows)
    left = _uniform(x, (count,), 0, 1, generator).mul(width - columns + 1).floor().minimum(width - columns)
    top = torch.where(found, top, (height - most_rows) // 2)
    left = torch.where(found, left, (width - most_columns) // 2)
    return top, left, rows, columns


def _resampling(start: Tensor, length: Tensor, before: int, after: int) -> Tensor:
    """Returns the weights of antialiased bilinear resizing along one axis, (N, after, before).

    Row i of matrix n weighs the pixels of image n for pixel i of the result. The weights are a triangle around the
    place of that pixel; it reaches one pixel of the image to each side, or one pixel of the result where that is
    larger. A matrix a box needs neither a loop over the boxes nor a gather.

    Args:
        start: (N,), the first pixel of each box along this axis.
        length: (N,), the pixels of each box along this axis.
        before: Pixels of the image along this axis.
        after: Pixels of the result along this axis.
    """
    scale = (length / after)[:, None]
    source = torch.arange(before, device=start.device) + 0.5
    place = start[:, None] + (torch.arange(after, device=start.device) + 0.5) * scale
    weight = (1 - (source - place[..., None]).abs() / scale.clamp(min=1)[..., None]).clamp(min=0)
    # Pixels outside the box have weight 0, as if the box had been cut out first.
    inside = (source > start[:, None]) & (source < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)


def affine(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Shifts each image, then rotates and zooms it; what comes from outside the image is black."""
    count = (len(x),)
    zoom = _uniform(x, count, *view.zoom, generator)
    most = math.radians(view.rotation)
    angle = _uniform(x, count, -most, most, generator)
    shift_x, shift_y = (_uniform(x, count, -view.shift, view.shift, generator) for _ in range(2))
    # affine_grid takes the inverse map, from the result's pixels to the image's, hence 1 / zoom.
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def flip(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Flips the chosen images left to right."""
    return torch.where(_chosen(x, view.flip_p, generator), x.flip(3), x)


def jitter(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Changes brightness, contrast, saturation and hue of the chosen images, in an order drawn for each image.

    Greyscale images have no saturation and hue to change. The hue is costly, so it is turned once for the whole batch:
    `before_hue` is how many of the other changes come before it in each image. Every other change is computed before
    and after the hue, and does nothing in one of the two.
    """
    saturation, hue = view.jitter[2:] if x.shape[1] == 3 else (0.0, 0.0)
    strengths = dict(enumerate((*view.jitter[:2], saturation)))
    kinds = [kind for kind, strength in strengths.items() if strength]
    factors = [_uniform(x, (len(x),), max(0, 1 - s), 1 + s, generator) for s in strengths.values()]
    order = torch.rand((len(x), 3), generator=generator, device=x.device)
    # A kind of strength 0 is sorted behind the others, so that its slots can be left out.
    order = torch.stack([order[:, kind] if kind in kinds else order[:, kind] + 1 for kind in strengths], 1).argsort(1)
    before_hue = torch.randint(len(kinds) + 1, (len(x),), generator=generator, device=x.device)
    chosen = _chosen(x, view.jitter_p, generator)
    y, slots = x, range(len(kinds))
    for slot in slots:
        active = before_hue > slot if hue else None
        y = _blend(y, order[:, slot], factors, kinds, active)
    if hue:
        y = shift_hue(y, _uniform(x, (len(x),), -hue, hue, generator))
        for slot in slots:
            y = _blend(y, order[:, slot], factors, kinds, before_hue <= slot)
    return torch.where(chosen, y, x)


def _blend(x: Tensor, kind: Tensor, factors: list[Tensor], kinds: list[int], active: Tensor | None) -> Tensor:
    """Moves each image away from black (brightness), its mean grey (contrast) or its own grey values (saturation).

    Args:
        x: (N, C, H, W) in [0, 1].
        kind: (N,), the kind of change of each image, one of `kinds`.
        factors: (N,) for each kind: 1 changes nothing, 0 gives black or grey.
        kinds: The kinds that occur.
        active: (N,) bool, which images change; None is all.
    """
    factor = torch.stack(factors, 1).gather(1, kind[:, None])
    if active is not None:
        factor = torch.where(active[:, None], factor, 1.0)
    other = x.new_zeros(())
    if kinds != [BRIGHTNESS]:
        grey, kind = to_gray(x), kind[:, None, None, None]
        mean = grey.mean((1, 2, 3), keepdim=True)
        other = torch.where(kind == SATURATION, grey, torch.where(kind == CONTRAST, mean, 0.0))
    return torch.lerp(other, x, factor[:, :, None, None]).clamp_(0, 1)


def to_gray(x: Tensor) -> Tensor:
    """Returns the grey values of images, (N, C, H, W) to (N, 1, H, W); the channel itself where there is only one."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of images (N, 3, H, W) by shift (N,), where 1 is the whole circle.

    The largest value of a pixel and its saturation stay. How far a channel lies below the largest value depends on the
    distance between the channel's own hue and the pixel's.
    """
    most, which = x.max(1, keepdim=True)
    span = most - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    # The hue in sixths of the circle, from the channel that is largest: red is at 0, green at 2, blue at 4.
    difference = torch.where(which == 0, green - blue, torch.where(which == 1, blue - red, red - green))
    hue = 2 * which + difference / torch.where(span == 0, 1.0, span) + 6 * shift[:, None, None, None]
    offsets = torch.arange(5, 0, -2, device=x.device)[:, None, None]  # red, green, blue: 5, 3, 1
    sixth = (hue + offsets).remainder_(6)
    return most - torch.minimum(sixth, 4 - sixth).clamp_(0, 1).mul_(span)


def gray(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Makes the chosen images grey, in all channels."""
    return torch.where(_chosen(x, view.gray_p, generator), to_gray(x), x)


def blur_width(size: int) -> int:
    """Returns the side of the blur's kernel: a tenth of the image's side, odd, at least 3 pixels."""
    return max(3, size // 10 | 1)


def blur(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Blurs the chosen images, each by its own standard deviation; the border is reflected."""
    sigma = _uniform(x, (len(x),), *view.blur_sigma, generator)
    return torch.where(_chosen(x, view.blur_p, generator), gaussian_blur(x, sigma, blur_width(size)), x)


def gaussian_blur(x: Tensor, sigma: Tensor, width: int) -> Tensor:
    """Blurs images (N, C, H, W) by Gaussians of the standard deviations sigma (N,), cut off at `width` (odd) pixels."""
    count, channels, height, columns = x.shape
    half = width // 2
    distance = torch.arange(-half, half + 1, device=x.device) / sigma[:, None]
    kernel = (-0.5 * distance.square()).softmax(1).repeat_interleave(channels, 0)
    # The channels of all images become channels of one image, so that one grouped convolution has a kernel for each.
    y = F.pad(x, (half,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * half, columns + 2 * half)
    y = F.conv2d(y, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(y, kernel[:, None, None, :], groups=count * channels).view(x.shape)


def solarize(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Inverts the values from one half on in the chosen images."""
    return torch.where(_chosen(x, view.solarize_p, generator) & (x >= 0.5), 1 - x, x)


def noise(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Adds normal noise to each image, of a standard deviation that is drawn for it."""
    deviation = _uniform(x, (len(x),), 0, view.noise, generator)[:, None, None, None]
    return (x + deviation * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)


# Each takes images (N, C, H, W) float32 in [0, 1], the view, the side of the result (only "crop" changes the size) and
# the generator (None is the global one), and returns images float32 in [0, 1].
OPERATIONS: dict[Operation, Callable[[Tensor, View, int, Generator | None], Tensor]] = {
    "crop": crop,
    "affine": affine,
    "flip": flip,
    "jitter": jitter,
    "gray": gray,
    "blur": blur,
    "solarize": solarize,
    "noise": noise,
}


def _uniform(x: Tensor, shape: tuple[int, ...], low: float, high: float, generator: Generator | None) -> Tensor:
    """Draws numbers from low to high on x's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=x.device)


def _chosen(x: Tensor, probability: float, generator: Generator | None) -> Tensor:
    """Draws which images of x an operation changes, (N, 1, 1, 1) bool, each image with this probability."""
    return torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device) < probability
