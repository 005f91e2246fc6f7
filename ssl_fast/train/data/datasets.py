"""Data sets: small ones in memory, folders of images by path."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE = Path("data")  # where torchvision puts what it downloads
FASHION_MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
FASHION_MNIST_HELP = (
    "Debian's package has its four idx files in /usr/share/datasets/fashion-mnist (apt install dataset-fashion-mnist)"
)
# Folder within the archive, training files, test file, key of the labels.
CIFAR_FILES = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels"),
    "cifar100": ("cifar-100-python", ["train"], "test", "fine_labels"),
}
STL10_FOLDER = "stl10_binary"
ARCHIVES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "stl10": "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
}
Channels = tuple[float, ...]
# Mean and standard deviation of each channel, white being 1, of the training images; CIFAR's and ImageNet's are those
# that published code normalises by.
NORMALIZATION: dict[str, tuple[Channels, Channels]] = {
    "digits": ((0.3054,), (0.3760,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Dataset:
    """Images and labels, and how an encoder is to see them.

    train_images, test_images: (N, C, H, W) uint8. train_labels, test_labels: (N,) int64, -1 where there is none.
    image_size: side of the encoder's input. flip: whether a mirrored image is as good as the image.
    mean, std: of each channel, white being 1.
    enlarge: factor by which images are enlarged before they are padded to image_size.
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
        """Number of classes: the labels are below it."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train_images)


@dataclass(frozen=True)
class FolderDataset:
    """Images by path, read when they are needed, in RGB.

    train, test: (path, label) of each image. classes: number of classes. The rest as in Dataset.
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
    """Loads a data set by its name, NAME or NAME:FOLDER.

    digits: come with scikit-learn.
    fashion-mnist, cifar10, cifar100, stl10: from the published files in FOLDER; without FOLDER torchvision downloads
    them once, into data/. Fashion-MNIST's four idx files, plain or .gz, are also those of Debian's package
    dataset-fashion-mnist. STL-10's training images are the labelled ones, then the unlabelled ones with label -1.
    imagefolder, imagenet: FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg (or FOLDER/test), not read yet.

    Raises ValueError for another name or a file that is not as expected, FileNotFoundError for a
    missing folder or file.
    """
    name, _, folder = spec.partition(":")
    if name == "digits" and not folder:
        return _digits()
    if name in _READERS:
        return _READERS[name](Path(folder) if folder else _downloaded(name))
    if name in ("imagefolder", "imagenet") and folder:
        return _image_folder(name, Path(folder))
    raise ValueError(
        "data: expected digits, fashion-mnist or fashion-mnist:FOLDER, cifar10, cifar100 or stl10 likewise, "
        f"imagefolder:FOLDER or imagenet:FOLDER, got {spec!r}"
    )


def _dataset(name: str, arrays: dict[str, Tensor], image_size: int, flip: bool, enlarge: int = 1) -> Dataset:
    mean, std = NORMALIZATION[name]
    return Dataset(name, **arrays, image_size=image_size, flip=flip, mean=mean, std=std, enlarge=enlarge)


def _downloaded(name: str) -> Path:
    """The folder with the files of a data set that torchvision has downloaded; does nothing where they are there."""
    from torchvision import datasets

    try:
        if name == "fashion-mnist":
            datasets.FashionMNIST(CACHE, download=True)
            return CACHE / "FashionMNIST" / "raw"
        if name == "stl10":
            datasets.STL10(CACHE, split="test", download=True)  # all splits are in one archive
        else:
            {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name](CACHE, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"data: {name} could not be downloaded to {CACHE}/ ({error}); "
            f"with its files in a folder, use {name}:FOLDER. {_source(name)}"
        ) from error
    return CACHE


def _source(name: str) -> str:
    """Where the files of a data set come from, for error messages."""
    return FASHION_MNIST_HELP if name == "fashion-mnist" else f"They are those of {ARCHIVES[name]}, unpacked"


def _file(name: str, folder: Path, inner: str, file: str) -> Path:
    """A data set's file, in the folder or in the archive's own folder in it; raises FileNotFoundError."""
    path = next((p for p in (folder / inner / file, folder / file) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"data: expected {file} in {folder} or {folder / inner}; {name} without a folder downloads it. "
            f"{_source(name)}"
        )
    return path


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # The same split for every seed of a run, so that runs compare.
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)

    def to_images(pixels: Any) -> Tensor:
        return (torch.from_numpy(pixels) * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)

    arrays = {
        "train_images": to_images(train_x),
        "train_labels": torch.from_numpy(train_y).long(),
        "test_images": to_images(test_x),
        "test_labels": torch.from_numpy(test_y).long(),
    }
    return _dataset("digits", arrays, image_size=24, flip=False, enlarge=2)


def _fashion_mnist(folder: Path) -> Dataset:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data: expected a folder with Fashion-MNIST's idx files, {folder} is none; "
            f"fashion-mnist without a folder downloads them. {FASHION_MNIST_HELP}"
        )
    arrays: dict[str, Any] = {part: _read_idx(folder, file) for part, file in FASHION_MNIST_FILES.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ValueError(
                f"data: expected {part} images (N, H, W) and labels (N,) in {folder}, "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        arrays[f"{part}_images"] = images[:, None]
        arrays[f"{part}_labels"] = labels.long()
    return _dataset("fashion-mnist", arrays, image_size=28, flip=True)


def _read_idx(folder: Path, name: str) -> Tensor:
    """An idx file of bytes as a uint8 tensor: 0, 0, 8 (bytes), number of dimensions, sizes, values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"data: expected {name} or {name}.gz in {folder}; fashion-mnist without a folder downloads it. "
            f"{FASHION_MNIST_HELP}"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dims = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dims}I", content, 4)
        if zeros or kind != 8 or not dims:
            raise ValueError("its first four bytes are not those of an idx file of bytes")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, RuntimeError) as error:
        raise ValueError(f"data: {path} is no complete idx file ({error})") from error


def _cifar(name: str, folder: Path) -> Dataset:
    inner, train, test, key = CIFAR_FILES[name]
    arrays = {}
    for part, files in (("train", train), ("test", [test])):
        batches = [_read_cifar(name, _file(name, folder, inner, file), key) for file in files]
        for kind, tensors in zip(("images", "labels"), zip(*batches, strict=True), strict=True):
            arrays[f"{part}_{kind}"] = torch.cat(tensors)
    return _dataset(name, arrays, image_size=32, flip=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads what CIFAR's files hold, and nothing that can run code: plain values and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        # The files name NumPy's module as it was in 2009; newer NumPy writes its name today.
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.ndarray(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file does")


def _read_cifar(name: str, path: Path, key: str) -> tuple[Tensor, Tensor]:
    """A batch of CIFAR's "python version": images (N, 3, 32, 32) uint8, labels (N,) int64."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch[key])
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
            raise ValueError(f"its images are {pixels.dtype} {pixels.shape}, not uint8 (N, 3072)")
        if labels.dtype.kind != "i" or labels.shape != pixels.shape[:1]:
            raise ValueError(f"it has {labels.dtype} {labels.shape} labels for {len(pixels)} images")
    # Damaged bytes are any opcodes, which fail in any way.
    except Exception as error:
        raise ValueError(f"data: {path} is no complete file of {name} ({error}). {_source(name)}") from error
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels).long()


def _stl10(folder: Path) -> Dataset:
    def images(file: str) -> Tensor:
        return _read_stl10_images(_file("stl10", folder, STL10_FOLDER, file))

    def labels(file: str, count: int) -> Tensor:
        path = _file("stl10", folder, STL10_FOLDER, file)
        values = np.fromfile(path, np.uint8)
        if len(values) != count or not values.all():
            raise ValueError(f"data: expected {count} labels from 1 in {path}. {_source('stl10')}")
        return torch.from_numpy(values).long() - 1

    labelled, unlabelled, test = (images(f"{part}_X.bin") for part in ("train", "unlabeled", "test"))
    train_labels = torch.full((len(labelled) + len(unlabelled),), -1)
    train_labels[: len(labelled)] = labels("train_y.bin", len(labelled))
    arrays = {
        # The files' images are read while they are copied: 3 GB are in memory once.
        "train_images": torch.empty((len(train_labels), 3, 96, 96), dtype=torch.uint8),
        "train_labels": train_labels,
        "test_images": test.contiguous(),
        "test_labels": labels("test_y.bin", len(test)),
    }
    arrays["train_images"][: len(labelled)] = labelled
    arrays["train_images"][len(labelled) :] = unlabelled
    return _dataset("stl10", arrays, image_size=96, flip=True)


def _read_stl10_images(path: Path) -> Tensor:
    """(N, 3, 96, 96) uint8, a view of the file, which has each image column by column."""
    size = path.stat().st_size
    if not size or size % (3 * 96 * 96):
        raise ValueError(
            f"data: expected images of {3 * 96 * 96} bytes in {path}, got {size} bytes. {_source('stl10')}"
        )
    pixels = np.memmap(path, np.uint8, mode="c")  # copy on write: PyTorch warns of arrays that cannot be written
    return torch.from_numpy(pixels).reshape(-1, 3, 96, 96).transpose(2, 3)


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


_READERS: dict[str, Callable[[Path], Dataset]] = {
    "fashion-mnist": _fashion_mnist,
    "cifar10": lambda folder: _cifar("cifar10", folder),
    "cifar100": lambda folder: _cifar("cifar100", folder),
    "stl10": _stl10,
}
