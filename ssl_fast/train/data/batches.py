"""Batches of random views for training, and of plain images for evaluation.

The views of a step depend only on the recipe's seed, the epoch, the step and the rank; those of a folder's image only
on the seed, the epoch and the image. They never depend on what was drawn before. So a run that resumes in the middle of
an epoch draws the same views without any saved state, and the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ..recipes import Recipe, View
from . import image_augmentation
from .batch_augmentation import Augment
from .datasets import Dataset, FolderDataset

# Keys of _seed: the order of an epoch, the views of a step (in memory), the views of an image (in folders).
ORDER, STEP, IMAGE = range(3)
Batch: TypeAlias = "tuple[list[Tensor], Tensor]"


class Batches:
    """The training batches of one process.

    Args:
        dataset: The training images. Those of a Dataset are copied to `device` once.
        recipe: Its seed, batch_size, image_size, normalize_images and views are used.
        device: Where the batches are made.
        rank: Number of this process, from 0.
        world: Processes that share each batch of recipe.batch_size images.
        workers: Processes that read and transform a folder's images; with 0 this process does.

    Attributes:
        steps: Batches an epoch. The images that do not fill a batch are left out of the epoch.

    Raises:
        ValueError: for a batch that is larger than the data set or cannot be shared by `world` processes.
    """

    def __init__(
        self,
        dataset: Dataset | FolderDataset,
        recipe: Recipe,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ):
        count, batch = dataset.train_count, recipe.batch_size
        if not 1 <= batch <= count:
            raise ValueError(f"batch_size: expected 1 to the {count} training images, got {batch}")
        if batch % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} processes, got {batch}")
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        self.steps = count // batch
        self._count, self._batch, self._seed = count, batch, recipe.seed
        self._rank, self._share = rank, batch // world
        self._device = torch.device(device)
        if isinstance(dataset, Dataset):
            self._images = dataset.train_images.to(self._device)
            self._generator = torch.Generator(self._device)
            normalize, size = recipe.normalize_images, recipe.image_size
            self._augments = [Augment(dataset, view, normalize, size) for view in recipe.views]
        else:
            normalization = (dataset.mean, dataset.std) if recipe.normalize_images else None
            size = recipe.image_size or dataset.image_size
            views = [image_augmentation.transform(view, size, normalization, dataset.flip) for view in recipe.views]
            self._loader = _Loader(_Images(dataset.train, views, recipe.seed), self._device, workers)
        self._in_memory = isinstance(dataset, Dataset)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the epoch's batches, on the device.

        For a FolderDataset only one epoch can be under way at a time.

        Args:
            epoch: Number of the epoch, from 0.
            first_step: Number of the first batch, from 0.

        Yields:
            views: A (n, C, S, S) float32 tensor for each of the recipe's views; n is this process's share of a batch.
            index: (n,) int64, the numbers of the images in the training set.
        """
        rows = self._rows(epoch)[first_step:]
        return self._from_memory(rows, epoch, first_step) if self._in_memory else self._loader.batches(rows, epoch)

    def _rows(self, epoch: int) -> Tensor:
        """Draws the numbers of this process's images, (steps, n) int64, a row a step."""
        generator = torch.Generator().manual_seed(_seed(self._seed, ORDER, epoch))
        order = torch.randperm(self._count, generator=generator)[: self.steps * self._batch]
        return order.view(self.steps, self._batch)[:, self._rank * self._share : (self._rank + 1) * self._share]

    def _from_memory(self, rows: Tensor, epoch: int, first_step: int) -> Iterator[Batch]:
        rows = rows.contiguous()
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        # All numbers of the epoch are copied at once, so that no step waits for a copy of its own.
        rows = rows.to(self._device, non_blocking=True)
        for step, index in enumerate(rows, first_step):
            self._generator.manual_seed(_seed(self._seed, STEP, epoch, step, self._rank))
            images = self._images[index]
            yield [augment(images, self._generator) for augment in self._augments], index


def plain_batches(
    dataset: Dataset | FolderDataset,
    part: Literal["train", "test"],
    normalize: bool,
    device: torch.device | str,
    batch_size: int = 512,
    workers: int = 0,
    image_size: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields all images of a part of the data set in order, without augmentation, and their labels, on the device.

    Args:
        dataset: In memory or a folder's.
        part: "train" or "test".
        normalize: Whether to subtract the data set's mean and divide by its deviation.
        device: Where the batches are made.
        batch_size: Images a batch; the last one has the rest.
        workers: Processes that read a folder's images; with 0 this process does.
        image_size: The side S; 0 takes the data set's own.

    Yields:
        images: (n, C, S, S) float32.
        labels: (n,) int64, -1 for an image without a label.
    """
    device = torch.device(device)
    if isinstance(dataset, Dataset):
        augment = Augment(dataset, View(), normalize, image_size)
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        for some, their_labels in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            yield augment.plain(some.to(device)), their_labels.to(device)
        return
    samples = dataset.train if part == "train" else dataset.test
    normalization = (dataset.mean, dataset.std) if normalize else None
    transform = image_augmentation.plain_transform(image_size or dataset.image_size, normalization)
    labels = torch.tensor([label for _, label in samples])
    rows = torch.arange(len(samples)).split(batch_size)
    loader = _Loader(_Images(samples, [transform], seed=0), device, workers)
    for row, (views, _) in zip(rows, loader.batches(rows, epoch=0), strict=True):
        yield views[0], labels[row].to(device)


class _Images(torch.utils.data.Dataset[Any]):
    """Image files for a DataLoader, each with a random state of its own.

    The key (epoch, number) gives a tensor for each of `views`, and the number.
    """

    def __init__(self, samples: list[tuple[str, int]], views: list[Callable[[Image.Image], Tensor]], seed: int):
        self._samples, self._views, self._seed = samples, views, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, number = key
        path = self._samples[number][0]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"data: {path} is no complete image ({error})") from error
        with torch.random.fork_rng(devices=[]):
            # torchvision draws from the global generator of the CPU. torch.manual_seed would also seed every device's.
            torch.default_generator.manual_seed(_seed(self._seed, IMAGE, epoch, number))
            return [view(image) for view in self._views], number


class _Keys:
    """A DataLoader's batch sampler whose batches can be replaced between epochs, so that its workers are kept."""

    rows: Iterable[Tensor] = ()
    epoch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for row in self.rows:
            yield [(self.epoch, number) for number in row.tolist()]


class _Loader:
    """Loads batches of image files, in this process or in workers."""

    def __init__(self, images: _Images, device: torch.device, workers: int):
        self._keys, self._device = _Keys(), device
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self._keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # otherwise DataLoader draws its workers' seeds from the global one
        )

    def batches(self, rows: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        """Yields the views and numbers of each of `rows`, the (n,) int64 numbers of a batch's images."""
        self._keys.rows, self._keys.epoch = rows, epoch
        for views, index in self._loader:
            yield (
                [view.to(self._device, non_blocking=True) for view in views],
                index.to(self._device, non_blocking=True),
            )


def _seed(seed: int, *key: int) -> int:
    """Mixes a recipe's seed with a key into a seed of 64 bits; different keys give independent seeds."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
