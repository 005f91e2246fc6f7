"""The data sets: split and types of the digits, idx files of Fashion-MNIST whole and damaged."""

import gzip
import struct

import pytest
import torch

from ssl_fast.train import data

SIZES = {"train": 7, "test": 3}


def idx(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + bytes(values.flatten().tolist())


def write_fashion_mnist(folder, compressed):
    """Random images in the four files of Fashion-MNIST; returns what they hold by part."""
    arrays = {}
    for part, file in data.FASHION_MNIST_FILES.items():
        count = SIZES[part.split("_")[0]]
        shape, most = ((count, 28, 28), 256) if part.endswith("images") else ((count,), 10)
        arrays[part] = torch.randint(most, shape, dtype=torch.uint8)
        content = idx(arrays[part])
        if compressed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return arrays


def test_digits():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.max() == 255
    # Stratified, and no image on both sides but those that the set itself holds twice.
    assert digits.test_labels.bincount().min() > 30
    again = data.load("digits")
    assert torch.equal(again.test_images, digits.test_images)


@pytest.mark.parametrize("spec", ["cifar", "digits:folder", "", "Digits"])
def test_unknown_name_lists_the_known(spec):
    with pytest.raises(ValueError, match=r"^data: expected digits, fashion-mnist or fashion-mnist:FOLDER, got '"):
        data.load(spec)


@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist_of_a_folder(compressed, tmp_path):
    arrays = write_fashion_mnist(tmp_path, compressed)
    dataset = data.load(f"fashion-mnist:{tmp_path}")
    for part in ("train", "test"):
        assert torch.equal(getattr(dataset, f"{part}_images")[:, 0], arrays[f"{part}_images"])
        labels = getattr(dataset, f"{part}_labels")
        assert labels.dtype == torch.int64
        assert torch.equal(labels, arrays[f"{part}_labels"].long())
    assert (dataset.image_size, dataset.flip) == (28, True)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^data: expected a folder .*nowhere"):
        data.load(f"fashion-mnist:{tmp_path / 'nowhere'}")
    write_fashion_mnist(tmp_path, compressed=False)
    name = data.FASHION_MNIST_FILES["test_labels"]
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"^data: expected {name} or {name}.gz in "):
        data.load(f"fashion-mnist:{tmp_path}")


def test_downloads_nothing_when_offline(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*arguments, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(FileNotFoundError, match=r"^data: .*could not be downloaded.*no network.*fashion-mnist:FOLDER"):
        data.load("fashion-mnist")


DAMAGES = {
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "of another type": lambda content: content[:2] + b"\x0d" + content[3:],
    "too many images": lambda content: content[:4] + struct.pack(">I", 2**31) + content[8:],
    "no gzip": lambda content: b"gibberish",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_file(damage, compressed, tmp_path):
    write_fashion_mnist(tmp_path, compressed)
    path = next(tmp_path.glob(data.FASHION_MNIST_FILES["train_images"] + "*"))
    content = path.read_bytes()
    # A gzip file's own header may change; what it holds may not.
    if compressed and damage in ("of another type", "too many images"):
        content = gzip.compress(DAMAGES[damage](gzip.decompress(content)))
    else:
        content = DAMAGES[damage](content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^data: .*train-images.* is no complete idx file"):
        data.load(f"fashion-mnist:{tmp_path}")


def test_labels_without_their_images(tmp_path):
    write_fashion_mnist(tmp_path, compressed=False)
    (tmp_path / data.FASHION_MNIST_FILES["train_labels"]).write_bytes(idx(torch.zeros(6, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"^data: expected train images \(N, H, W\) and labels \(N,\)"):
        data.load(f"fashion-mnist:{tmp_path}")
