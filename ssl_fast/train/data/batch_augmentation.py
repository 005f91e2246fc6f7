"""Random views, drawn anew for each image, of a whole batch at once on its device.

The operations' formulas and distributions are torchvision's (transforms.v2 on float tensors). None of them waits for
the device: what happens to which image is chosen by torch.where, so that a view can be part of a captured step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..recipes.view import Operation, View
from .datasets import Dataset

CROP_ATTEMPTS = 10  # of a box that lies in the image, as torchvision
GRAY = (0.2989, 0.587, 0.114)
# On the CPU a batch is taken in parts of so many values, which its caches hold: three times as fast.
CPU_VALUES = 200_000
BRIGHTNESS, CONTRAST, SATURATION = range(3)


class Augment:
    """Makes encoder inputs from a data set's images: (N, C, H, W) uint8 to (N, C, S, S) float32.

    S is image_size, or the data set's own where it is 0. Values are in [0, 1]; with normalize, the data set's mean
    is subtracted and they are divided by its deviation. Randomness comes only from the generator given, which lives
    on the images' device: the same state gives the same result.
    """

    def __init__(self, dataset: Dataset, view: View, normalize: bool, image_size: int = 0):
        self.view = view
        self.image_size = image_size or dataset.image_size
        self.order = tuple(operation for operation in view.order if operation != "flip" or dataset.flip)
        self._own_size, self._enlarge = dataset.image_size, dataset.enlarge
        self._channels = list(zip(dataset.mean, dataset.std, strict=True)) if normalize else []

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """One random view: the operations of the view in their order."""
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
        """Shift, zoom and rotation of the view only: what an invariant encoder does not see."""
        return self._normalized(affine(self._resized(images), self.view, self.image_size, generator))

    def plain(self, images: Tensor) -> Tensor:
        """The images themselves: enlarged and padded, in the encoder's size."""
        return self._normalized(self._resized(images))

    def _prepared(self, images: Tensor) -> Tensor:
        """(N, C, s, s) of the data set's own size s."""
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
        # By numbers, not by tensors of mean and deviation: their copy to a device would wait for it.
        for channel, (mean, std) in enumerate(self._channels):
            x[:, channel].sub_(mean).div_(std)
        return x


def crop(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """A random box of each image, resized to (N, C, size, size)."""
    height, width = x.shape[2:]
    top, left, rows, columns = _boxes(x, view, generator)
    vertical = _resampling(top, rows, height, size)
    horizontal = _resampling(left, columns, width, size)
    return vertical[:, None] @ x @ horizontal[:, None].mT


def _boxes(x: Tensor, view: View, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of random boxes, (N,) whole numbers as floats.

    The area's share is uniform, the ratio's logarithm too; the first of CROP_ATTEMPTS boxes that lies in the image
    counts. Where there is none: the largest box in the middle whose ratio is allowed.
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
    """(N, after, before): what each output pixel takes from the pixels from start on, antialiased and bilinear.

    A triangle around the output pixel's place, one source pixel to each side, or one output pixel where those are
    larger. As a matrix, since a batch's boxes then need no loop and no gather.
    """
    scale = (length / after)[:, None]
    source = torch.arange(before, device=start.device) + 0.5
    place = start[:, None] + (torch.arange(after, device=start.device) + 0.5) * scale
    weight = (1 - (source - place[..., None]).abs() / scale.clamp(min=1)[..., None]).clamp(min=0)
    # What lies beside the box does not count.
    inside = (source > start[:, None]) & (source < (start + length)[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(2, keepdim=True)


def affine(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Zoom, rotation, and a shift of the unmoved image; what comes from outside is black."""
    count = (len(x),)
    zoom = _uniform(x, count, *view.zoom, generator)
    most = math.radians(view.rotation)
    angle = _uniform(x, count, -most, most, generator)
    shift_x, shift_y = (_uniform(x, count, -view.shift, view.shift, generator) for _ in range(2))
    # affine_grid asks where each output pixel comes from: the inverse, hence 1 / zoom.
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def flip(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Left to right."""
    return torch.where(_chosen(x, view.flip_p, generator), x.flip(3), x)


def jitter(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Brightness, contrast, saturation and hue in random order; no saturation and hue without colour.

    Each image has its own order: the hue comes after as many of the others as is drawn, and every other one has a
    slot before and a slot after the hue, of which one does nothing.
    """
    saturation, hue = view.jitter[2:] if x.shape[1] == 3 else (0.0, 0.0)
    strengths = dict(enumerate((*view.jitter[:2], saturation)))
    kinds = [kind for kind, strength in strengths.items() if strength]
    factors = [_uniform(x, (len(x),), max(0, 1 - s), 1 + s, generator) for s in strengths.values()]
    order = torch.rand((len(x), 3), generator=generator, device=x.device)
    # A kind that does nothing comes last: its slots are left out.
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
    """Each image by the factor of its kind towards or away from black, its mean grey or its own grey.

    kind: (N,) of `kinds`. active: (N,) bool, which images change; None for all.
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
    """(N, C, H, W) to (N, 1, H, W): brightness as the eye sees it, or the only channel."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (GRAY[0] * red).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """(N, 3, H, W) with the hue turned by shift (N,), 1 being the whole circle.

    Largest value and saturation stay; a channel lies below the largest value by as much as the hue is away from it.
    """
    most, which = x.max(1, keepdim=True)
    span = most - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    # The hue in sixths of the circle, counted from the largest channel.
    difference = torch.where(which == 0, green - blue, torch.where(which == 1, blue - red, red - green))
    hue = 2 * which + difference / torch.where(span == 0, 1.0, span) + 6 * shift[:, None, None, None]
    offsets = torch.arange(5, 0, -2, device=x.device)[:, None, None]  # red, green, blue: 5, 3, 1
    sixth = (hue + offsets).remainder_(6)
    return most - torch.minimum(sixth, 4 - sixth).clamp_(0, 1).mul_(span)


def gray(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Colour to grey, in all channels."""
    return torch.where(_chosen(x, view.gray_p, generator), to_gray(x), x)


def blur_width(size: int) -> int:
    """Side of the blur's kernel: a tenth of the image's, odd, at least 3."""
    return max(3, size // 10 | 1)


def blur(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Gaussian blur, each image by its own deviation; the border is reflected."""
    sigma = _uniform(x, (len(x),), *view.blur_sigma, generator)
    return torch.where(_chosen(x, view.blur_p, generator), gaussian_blur(x, sigma, blur_width(size)), x)


def gaussian_blur(x: Tensor, sigma: Tensor, width: int) -> Tensor:
    """(N, C, H, W), each image by its deviation of sigma (N,), over width (odd) pixels."""
    count, channels, height, columns = x.shape
    half = width // 2
    distance = torch.arange(-half, half + 1, device=x.device) / sigma[:, None]
    kernel = (-0.5 * distance.square()).softmax(1).repeat_interleave(channels, 0)
    # All images' channels as channels of one image: a kernel each.
    y = F.pad(x, (half,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * half, columns + 2 * half)
    y = F.conv2d(y, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(y, kernel[:, None, None, :], groups=count * channels).view(x.shape)


def solarize(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Values from one half on inverted."""
    return torch.where(_chosen(x, view.solarize_p, generator) & (x >= 0.5), 1 - x, x)


def noise(x: Tensor, view: View, size: int, generator: Generator | None) -> Tensor:
    """Normal noise of a deviation drawn for each image."""
    deviation = _uniform(x, (len(x),), 0, view.noise, generator)[:, None, None, None]
    return (x + deviation * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)


# (N, C, H, W) float32 in [0, 1], the view, the side of the result (which "crop" makes; the others keep theirs) and
# the generator, None for the global one.
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
    return low + (high - low) * torch.rand(shape, generator=generator, device=x.device)


def _chosen(x: Tensor, probability: float, generator: Generator | None) -> Tensor:
    """(N, 1, 1, 1) bool, each with the probability."""
    return torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device) < probability
