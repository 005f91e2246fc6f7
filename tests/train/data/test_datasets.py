"""The data sets: split and types of the digits; each other one from files in its real format, whole and damaged."""

import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_fast.train.data import datasets, published_files

SIZES = {"train": 7, "test": 3}


def idx(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + bytes(values.flatten().tolist())


def write_fashion_mnist(folder, compressed):
    """Random images in the four files of Fashion-MNIST; returns what they hold by part."""
    arrays = {}
    for part, file in published_files.FASHION_MNIST_FILES.items():
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
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_images.max() == 255
    # Stratified, and no image on both sides but those that the set itself holds twice.
    assert digits.test_labels.bincount().min() > 30
    again = datasets.load("digits")
    assert torch.equal(again.test_images, digits.test_images)


def test_digits_are_normalized_by_their_own():
    digits = datasets.load("digits")
    values = digits.train_images.double() / 255
    assert digits.mean == pytest.approx([values.mean().item()], abs=1e-4)
    assert digits.std == pytest.approx([values.std().item()], abs=1e-4)
    assert (digits.channels, digits.classes, digits.train_count) == (1, 10, 1437)


@pytest.mark.parametrize("spec", ["cifar", "digits:folder", "", "Digits", "imagenet", "imagefolder:"])
def test_unknown_name_lists_the_known(spec):
    with pytest.raises(ValueError, match=rf"^data: expected digits, fashion-mnist or .*, got '{spec}'$"):
        datasets.load(spec)


@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist_of_a_folder(compressed, tmp_path):
    arrays = write_fashion_mnist(tmp_path, compressed)
    dataset = datasets.load(f"fashion-mnist:{tmp_path}")
    for part in ("train", "test"):
        assert torch.equal(getattr(dataset, f"{part}_images")[:, 0], arrays[f"{part}_images"])
        labels = getattr(dataset, f"{part}_labels")
        assert labels.dtype == torch.int64
        assert torch.equal(labels, arrays[f"{part}_labels"].long())
    assert (dataset.image_size, dataset.flip, dataset.channels) == (28, True, 1)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^data: expected a folder .*nowhere"):
        datasets.load(f"fashion-mnist:{tmp_path / 'nowhere'}")
    write_fashion_mnist(tmp_path, compressed=False)
    name = published_files.FASHION_MNIST_FILES["test_labels"]
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"^data: expected {name} or {name}.gz in "):
        datasets.load(f"fashion-mnist:{tmp_path}")


CLASSES = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}


@pytest.mark.parametrize("name", CLASSES)
def test_downloads_nothing_when_offline(name, monkeypatch):
    import torchvision.datasets

    def offline(*arguments, **options):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, CLASSES[name], offline)
    message = rf"^data: {name} could not be downloaded.*no network.*{name}:FOLDER.*(apt install|https?://)"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load(name)


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_downloaded_is_read(name, monkeypatch, tmp_path):
    import torchvision.datasets

    def download(folder, *arguments, **options):
        assert options["download"]
        assert folder == tmp_path / "data"
        target = folder / ("FashionMNIST/raw" if name == "fashion-mnist" else "")
        target.mkdir(parents=True)
        WRITERS[name](target)

    monkeypatch.setattr(torchvision.datasets, CLASSES[name], download)
    monkeypatch.setattr(published_files, "CACHE", tmp_path / "data")
    assert datasets.load(name).name == name


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
    path = next(tmp_path.glob(published_files.FASHION_MNIST_FILES["train_images"] + "*"))
    content = path.read_bytes()
    # A gzip file's own header may change; what it holds may not.
    if compressed and damage in ("of another type", "too many images"):
        content = gzip.compress(DAMAGES[damage](gzip.decompress(content)))
    else:
        content = DAMAGES[damage](content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^data: .*train-images.* is no complete idx file"):
        datasets.load(f"fashion-mnist:{tmp_path}")


def test_labels_without_their_images(tmp_path):
    write_fashion_mnist(tmp_path, compressed=False)
    (tmp_path / published_files.FASHION_MNIST_FILES["train_labels"]).write_bytes(idx(torch.zeros(6, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"^data: expected train images \(N, H, W\) and labels \(N,\)"):
        datasets.load(f"fashion-mnist:{tmp_path}")


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2's cPickle did the files of CIFAR: protocol 2, strings of bytes."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(folder, name, inner=True):
    """Random images in the files of a CIFAR; returns images and labels of each."""
    own, train, test, key = published_files.CIFAR_FILES[name]
    place = folder / own if inner else folder
    place.mkdir(exist_ok=True)
    written = {}
    for file in (*train, test):
        images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
        labels = torch.randint(100 if name == "cifar100" else 10, (3,))
        values = {"batch_label": file, key: labels.tolist(), "data": images.reshape(3, -1).numpy()}
        values |= {"filenames": [f"image_{i}.png" for i in range(3)]}
        (place / file).write_bytes(python2_pickle(values))
        written[file] = images, labels
    return written


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("name", published_files.CIFAR_FILES)
def test_cifar(name, inner, tmp_path):
    written = write_cifar(tmp_path, name, inner)
    dataset = datasets.load(f"{name}:{tmp_path}")
    *train, test = written.values()
    assert torch.equal(dataset.train_images, torch.cat([images for images, _ in train]))
    assert torch.equal(dataset.train_labels, torch.cat([labels for _, labels in train]))
    assert torch.equal(dataset.test_images, test[0])
    assert torch.equal(dataset.test_labels, test[1])
    assert dataset.train_labels.dtype == torch.int64
    assert (dataset.image_size, dataset.flip, dataset.channels, len(dataset.mean)) == (32, True, 3, 3)
    assert dataset.classes == int(torch.cat([labels for _, labels in written.values()]).max()) + 1


def test_cifar_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(python2_pickle({"label_names": ["a"]}))
    # The small files have other checksums than the real ones.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: os.path.isfile(path))
    theirs, ours = CIFAR10(tmp_path, train=True), datasets.load(f"cifar10:{tmp_path}")
    assert np.array_equal(theirs.data, ours.train_images.permute(0, 2, 3, 1).numpy())
    assert theirs.targets == ours.train_labels.tolist()


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


CIFAR_DAMAGES = {
    "cut": lambda content: content[:-40],
    "empty": lambda content: b"",
    "no pickle": lambda content: b"gibberish",
    "no labels": lambda content: content.replace(b"fine_labels", b"fine_babels"),
    "another shape": lambda content: python2_pickle({"data": np.zeros((3, 7), np.uint8), "fine_labels": [1, 2, 3]}),
    "another type": lambda content: python2_pickle({"data": np.zeros((3, 3072)), "fine_labels": [1, 2, 3]}),
    "too few labels": lambda content: python2_pickle({"data": np.zeros((3, 3072), np.uint8), "fine_labels": [1, 2]}),
}


@pytest.mark.parametrize("damage", CIFAR_DAMAGES)
def test_damaged_cifar(damage, tmp_path):
    write_cifar(tmp_path, "cifar100")
    path = tmp_path / "cifar-100-python" / "train"
    path.write_bytes(CIFAR_DAMAGES[damage](path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"^data: .*train is no complete file of cifar100 .*https://.*cifar-100-python"
    ):
        datasets.load(f"cifar100:{tmp_path}")


def test_a_pickle_runs_no_code(tmp_path):
    write_cifar(tmp_path, "cifar100")
    harm = tmp_path / "harm"
    (tmp_path / "cifar-100-python" / "train").write_bytes(python2_pickle({"data": Harm(harm)}))
    with pytest.raises(ValueError, match=r"it names (posix|nt)\.mkdir, which no CIFAR file does"):
        datasets.load(f"cifar100:{tmp_path}")
    assert not harm.exists()


STL10_COUNTS = {"train": 4, "unlabeled": 5, "test": 3}


def write_stl10(folder, inner=True):
    """Random images in the files of STL-10, column by column as there; returns images and labels."""
    place = folder / published_files.STL10_FOLDER if inner else folder
    place.mkdir(exist_ok=True)
    written = {}
    for part, count in STL10_COUNTS.items():
        written[f"{part}_X"] = torch.randint(256, (count, 3, 96, 96), dtype=torch.uint8)
        (place / f"{part}_X.bin").write_bytes(written[f"{part}_X"].transpose(2, 3).contiguous().numpy().tobytes())
        if part != "unlabeled":
            written[f"{part}_y"] = torch.randint(10, (count,))
            (place / f"{part}_y.bin").write_bytes(bytes((written[f"{part}_y"] + 1).tolist()))
    return written


@pytest.mark.parametrize("inner", [True, False])
def test_stl10(inner, tmp_path):
    written = write_stl10(tmp_path, inner)
    dataset = datasets.load(f"stl10:{tmp_path}")
    assert torch.equal(dataset.train_images, torch.cat([written["train_X"], written["unlabeled_X"]]))
    assert torch.equal(dataset.train_labels, torch.cat([written["train_y"], torch.full((5,), -1)]))
    assert torch.equal(dataset.test_images, written["test_X"])
    assert torch.equal(dataset.test_labels, written["test_y"])
    assert all(images.is_contiguous() for images in (dataset.train_images, dataset.test_images))
    assert (dataset.image_size, dataset.flip, dataset.channels) == (96, True, 3)


@pytest.mark.parametrize(
    ("file", "content"),
    [("train_X.bin", b""), ("unlabeled_X.bin", b"1" * 27649), ("train_y.bin", b"\1\2"), ("test_y.bin", b"\0\1\2")],
)
def test_damaged_stl10(file, content, tmp_path):
    write_stl10(tmp_path)
    (tmp_path / published_files.STL10_FOLDER / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data: expected .*{file}.*http://.*stl10_binary\.tar\.gz"):
        datasets.load(f"stl10:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "data_batch_1"), ("cifar100", "train"), ("stl10", "train_X.bin")]
)
def test_missing_files_say_where_they_come_from(name, file, tmp_path):
    message = rf"^data: expected {file} in .*; {name} without a folder downloads it\. .*https?://.*tar\.gz"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load(f"{name}:{tmp_path}")


WRITERS = {
    "fashion-mnist": lambda folder: write_fashion_mnist(folder, compressed=True),
    "cifar10": lambda folder: write_cifar(folder, "cifar10"),
    "cifar100": lambda folder: write_cifar(folder, "cifar100"),
    "stl10": write_stl10,
}


def write_folder(folder, parts=("train", "val")):
    for part in parts:
        for label, count in {"cat": 2, "dog": 3}.items():
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (5, 4)).save(folder / part / label / f"{number}.jpg")


@pytest.mark.parametrize("test", ["val", "test"])
@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_image_folder(name, test, tmp_path):
    write_folder(tmp_path, ("train", test))
    dataset = datasets.load(f"{name}:{tmp_path}")
    expected = [(f"cat/{i}.jpg", 0) for i in range(2)] + [(f"dog/{i}.jpg", 1) for i in range(3)]
    assert dataset.train == [(str(tmp_path / "train" / path), label) for path, label in expected]
    assert dataset.test == [(str(tmp_path / test / path), label) for path, label in expected]
    assert (dataset.name, dataset.classes, dataset.channels, dataset.train_count) == (name, 2, 3, 5)
    assert (dataset.image_size, dataset.flip) == (224, True)
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_image_folder_without_images(tmp_path):
    message = r"^data: expected images in .*/train/CLASS/ and .*/val/CLASS/"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load(f"imagefolder:{tmp_path / 'nowhere'}")
    write_folder(tmp_path, ("train",))
    with pytest.raises(FileNotFoundError, match=message):
        datasets.load(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message + ".*empty"):
        datasets.load(f"imagefolder:{tmp_path}")


def test_image_folders_of_other_classes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "bird")
    with pytest.raises(ValueError, match=r"^data: expected the same classes in .*, got bird, dog in one only"):
        datasets.load(f"imagefolder:{tmp_path}")
