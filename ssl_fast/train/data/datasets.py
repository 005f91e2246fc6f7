"""Data sets by name: small ones whole in memory, folders of images by path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import published_files

Channels = tuple[float, ...]
# Mean and standard deviation of each channel over the training images, where white is 1. Those of CIFAR and ImageNet
# are the rounded ones of published code, so that exported weights fit it.
NORMALIZATION: dict[str, tuple[Channels, Channels]] = {
    "digits": ((0.3054,), (0.3760,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# image_size: side of the encoder's input. flip: whether a mirrored image still shows what its label says.
_SHOWN: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"image_size": 28, "flip": True},
    "cifar10": {"image_size": 32, "flip": True},
    "cifar100": {"image_size": 32, "flip": True},
    "stl10": {"image_size": 96, "flip": True},
}


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, and how an encoder sees its images.

    Args:
        name: As in `load`.
        train_images: (N, C, H, W) uint8.
        train_labels: (N,) int64 from 0; -1 for an image without a label.
        test_images: (M, C, H, W) uint8.
        test_labels: (M,) int64 from 0.
        image_size: Side of the encoder's input in pixels, unless a recipe names another.
        flip: Whether a mirrored image still shows what its label says, so that views may be flipped.
        mean: Of each channel, where white is 1.
        std: Standard deviation of each channel, where white is 1.
        enlarge: Factor by which images are enlarged before they are padded to image_size.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_size: int
    flip: bool
    mean: Channels
    std: Channels
    enlarge: int = 1

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes: every label is below it."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train_images)


@dataclass(frozen=True)
class FolderDataset:
    """A data set of image files, which are read in RGB when they are needed.

    Args:
        name: "imagefolder" or "imagenet".
        train: Path and label (from 0) of each training image.
        test: Path and label of each test image.
        classes: Number of classes.
        image_size: Side of the encoder's input in pixels, unless a recipe names another.
        flip: Whether views may be flipped, as in Dataset.
        mean: Of each channel, where white is 1.
        std: Standard deviation of each channel, where white is 1.
        channels: Of the images.
    """

    name: str
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    classes: int
    image_size: int = 224
    flip: bool = True
    mean: Channels = NORMALIZATION["imagenet"][0]
    std: Channels = NORMALIZATION["imagenet"][1]
    channels: int = 3

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train)


def load(spec: str) -> Dataset | FolderDataset:
    """Loads a data set by its name.

    Args:
        spec: NAME or NAME:FOLDER.
            digits: the 8 x 8 digits that come with scikit-learn, every fifth of them for testing.
            fashion-mnist, cifar10, cifar100, stl10: the published files in FOLDER; without FOLDER torchvision
            downloads them once, into data/. Fashion-MNIST's four idx files may be plain or .gz. STL-10's training
            images are the labelled ones, then the unlabelled ones with the label -1.
            imagefolder:FOLDER, imagenet:FOLDER: the files FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg (or
            FOLDER/test), of which only the names are read here.

    Returns:
        A Dataset, whose images are in memory, or a FolderDataset, whose images are files.

    Raises:
        ValueError: for another name, and for a file that is not what the data set publishes.
        FileNotFoundError: for a missing folder or file.

    Example:
        >>> load("digits").train_images.shape
        torch.Size([1437, 1, 8, 8])
    """
    name, _, folder = spec.partition(":")
    if name == "digits" and not folder:
        return _digits()
    if name in published_files.READERS:
        arrays = published_files.READERS[name](Path(folder) if folder else published_files.downloaded(name))
        return _in_memory(name, arrays, **_SHOWN[name])
    if name in ("imagefolder", "imagenet") and folder:
        return _image_folder(name, Path(folder))
    raise ValueError(
        "data: expected digits, fashion-mnist or fashion-mnist:FOLDER, cifar10, cifar100 or stl10 likewise, "
        f"imagefolder:FOLDER or imagenet:FOLDER, got {spec!r}"
    )


def _in_memory(name: str, arrays: dict[str, Tensor], image_size: int, flip: bool, enlarge: int = 1) -> Dataset:
    mean, std = NORMALIZATION[name]
    return Dataset(name, **arrays, image_size=image_size, flip=flip, mean=mean, std=std, enlarge=enlarge)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # The split does not depend on a run's seed, so that the accuracies of runs can be compared.
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)

    def to_images(pixels: Any) -> Tensor:
        return (torch.from_numpy(pixels) * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)

    arrays = {
        "train_images": to_images(train_x),
        "train_labels": torch.from_numpy(train_y).long(),
        "test_images": to_images(test_x),
        "test_labels": torch.from_numpy(test_y).long(),
    }
    return _in_memory("digits", arrays, image_size=24, flip=False, enlarge=2)


def _image_folder(name: str, folder: Path) -> FolderDataset:
    from torchvision.datasets import ImageFolder

    test_folder = folder / ("val" if (folder / "val").is_dir() else "test")
    parts: list[Any] = []
    for part in (folder / "train", test_folder):
        try:
            parts.append(ImageFolder(str(part)))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"data: expected images in {folder}/train/CLASS/ and {folder}/val/CLASS/ (or test) ({error})"
            ) from error
    train, test = parts
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"data: expected the same classes in {folder / 'train'} and {test_folder}, "
            f"got {', '.join(differing[:5])} in one only"
        )
    return FolderDataset(name, train.samples, test.samples, len(train.classes))
