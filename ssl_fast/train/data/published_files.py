"""The files in which Fashion-MNIST, CIFAR-10, CIFAR-100 and STL-10 are published: downloaded once, then read."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE = Path("data")  # the folder into which torchvision downloads
FASHION_MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
FASHION_MNIST_HELP = (
    "Debian's package has its four idx files in /usr/share/datasets/fashion-mnist (apt install dataset-fashion-mnist)"
)
# By name: the folder within the archive, the training files, the test file, the key of the labels.
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


def downloaded(name: str) -> Path:
    """Returns the folder with the files of a data set, which torchvision downloads unless they are there."""
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
    """Says where the files of a data set come from, for error messages."""
    return FASHION_MNIST_HELP if name == "fashion-mnist" else f"They are those of {ARCHIVES[name]}, unpacked"


def _file(name: str, folder: Path, inner: str, file: str) -> Path:
    """Finds a file of a data set in `folder`, or in the archive's folder `inner` within it.

    Raises:
        FileNotFoundError: where it is in neither.
    """
    path = next((p for p in (folder / inner / file, folder / file) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"data: expected {file} in {folder} or {folder / inner}; {name} without a folder downloads it. "
            f"{_source(name)}"
        )
    return path


def _fashion_mnist(folder: Path) -> dict[str, Tensor]:
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
    return arrays


def _read_idx(folder: Path, name: str) -> Tensor:
    """Reads an idx file of bytes as a uint8 tensor.

    The file has two zero bytes, the byte 8 (its values are bytes), the number of dimensions as a byte, the size of each
    dimension as a big-endian 32-bit integer, and the values.
    """
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


def _cifar(name: str, folder: Path) -> dict[str, Tensor]:
    inner, train, test, key = CIFAR_FILES[name]
    arrays = {}
    for part, files in (("train", train), ("test", [test])):
        batches = [_read_cifar(name, _file(name, folder, inner, file), key) for file in files]
        for kind, tensors in zip(("images", "labels"), zip(*batches, strict=True), strict=True):
            arrays[f"{part}_{kind}"] = torch.cat(tensors)
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles the plain values and NumPy arrays of CIFAR's files, and refuses all else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        # The published files name NumPy's module of 2009. Files that NumPy 2 writes again have the module's new name.
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.ndarray(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file does")


def _read_cifar(name: str, path: Path, key: str) -> tuple[Tensor, Tensor]:
    """Reads a file of CIFAR's "python version": images (N, 3, 32, 32) uint8 and labels (N,) int64."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels, labels = np.asarray(batch["data"]), np.asarray(batch[key])
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
            raise ValueError(f"its images are {pixels.dtype} {pixels.shape}, not uint8 (N, 3072)")
        if labels.dtype.kind != "i" or labels.shape != pixels.shape[:1]:
            raise ValueError(f"it has {labels.dtype} {labels.shape} labels for {len(pixels)} images")
    # Damaged bytes can be any instruction of the pickle format, so that unpickling may raise any exception.
    except Exception as error:
        raise ValueError(f"data: {path} is no complete file of {name} ({error}). {_source(name)}") from error
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels).long()


def _stl10(folder: Path) -> dict[str, Tensor]:
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
        # _read_stl10_images maps the files, so that this copy is the only one of 3 GB in memory.
        "train_images": torch.empty((len(train_labels), 3, 96, 96), dtype=torch.uint8),
        "train_labels": train_labels,
        "test_images": test.contiguous(),
        "test_labels": labels("test_y.bin", len(test)),
    }
    arrays["train_images"][: len(labelled)] = labelled
    arrays["train_images"][len(labelled) :] = unlabelled
    return arrays


def _read_stl10_images(path: Path) -> Tensor:
    """Maps a file of images as (N, 3, 96, 96) uint8; the file stores each image column by column."""
    size = path.stat().st_size
    if not size or size % (3 * 96 * 96):
        raise ValueError(
            f"data: expected images of {3 * 96 * 96} bytes in {path}, got {size} bytes. {_source('stl10')}"
        )
    pixels = np.memmap(path, np.uint8, mode="c")  # copy on write, since PyTorch warns about read-only arrays
    return torch.from_numpy(pixels).reshape(-1, 3, 96, 96).transpose(2, 3)


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "fashion-mnist": _fashion_mnist,
    "cifar10": lambda folder: _cifar("cifar10", folder),
    "cifar100": lambda folder: _cifar("cifar100", folder),
    "stl10": _stl10,
}
