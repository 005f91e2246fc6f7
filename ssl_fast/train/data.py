"""Data sets that fit in memory: scikit-learn's digits and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CACHE = Path("data")  # where torchvision puts what it downloads
FASHION_MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Dataset:
    """Images and labels, and how an encoder is to see them.

    train_images, test_images: (N, C, H, W) uint8. train_labels, test_labels: (N,) int64.
    image_size: side of the encoder's input. flip: whether a mirrored image is as good as the image.
    enlarge: factor by which images are enlarged before they are padded to image_size.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_size: int
    flip: bool
    enlarge: int = 1


def load(spec: str) -> Dataset:
    """Loads "digits", "fashion-mnist" or "fashion-mnist:FOLDER".

    Digits come with scikit-learn. Fashion-MNIST is read from the four idx files, plain or .gz, in
    FOLDER; without FOLDER torchvision downloads them once, into data/.
    Raises ValueError for another name or a file that is not as expected, FileNotFoundError for a
    missing folder or file.
    """
    name, _, folder = spec.partition(":")
    if name == "digits" and not folder:
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(Path(folder) if folder else _downloaded_fashion_mnist())
    raise ValueError(f"data: expected digits, fashion-mnist or fashion-mnist:FOLDER, got {spec!r}")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    # The same split for every seed of a run, so that runs compare.
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)

    def to_images(pixels: Any) -> Tensor:
        return (torch.from_numpy(pixels) * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)

    def to_labels(values: Any) -> Tensor:
        return torch.from_numpy(values).long()

    return Dataset(
        "digits", to_images(train_x), to_labels(train_y), to_images(test_x), to_labels(test_y),
        image_size=24, flip=False, enlarge=2,
    )  # fmt: skip


def _downloaded_fashion_mnist() -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(CACHE, download=True)  # does nothing where the files are there
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"data: Fashion-MNIST could not be downloaded to {CACHE}/ ({error}); "
            "with its four idx files in a folder, use fashion-mnist:FOLDER"
        ) from error
    return CACHE / "FashionMNIST" / "raw"


def _fashion_mnist(folder: Path) -> Dataset:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data: expected a folder with Fashion-MNIST's idx files, {folder} is none; "
            "fashion-mnist without a folder downloads them"
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
    return Dataset("fashion-mnist", **arrays, image_size=28, flip=True)


def _read_idx(folder: Path, name: str) -> Tensor:
    """An idx file of bytes as a uint8 tensor: 0, 0, 8 (bytes), number of dimensions, sizes, values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"data: expected {name} or {name}.gz in {folder}; fashion-mnist without a folder downloads it"
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
