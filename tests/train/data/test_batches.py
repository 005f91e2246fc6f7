"""Batches: every image at most once, the same whatever the process, the workers or the step that it starts from."""

import dataclasses
import itertools

import pytest
import torch
from PIL import Image

from ssl_fast.train.data import batches, datasets
from ssl_fast.train.data.batches import Batches, plain_batches
from ssl_fast.train.recipes import SimCLRRecipe, View, simclr

COUNT, BATCH = 22, 6
RECIPE = SimCLRRecipe(batch_size=BATCH, image_size=0, view1=simclr.VIEW, view2=simclr.CIFAR_VIEW, normalize_images=True)


def in_memory():
    images = torch.randint(256, (COUNT, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(COUNT) % 3
    return datasets.Dataset(
        "colours", images, labels, images[:7], labels[:7], 12, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    dataset = in_memory()
    for number, (image, label) in enumerate(zip(dataset.train_images, dataset.train_labels, strict=True)):
        for part in ("train", "val"):
            (path / part / str(label.item())).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.resize((16, 14)).save(path / part / str(label.item()) / f"{number}.png")
    return dataclasses.replace(datasets.load(f"imagefolder:{path}"), image_size=12)


@pytest.fixture(params=["memory", "folder"])
def dataset(request, folder):
    return in_memory() if request.param == "memory" else folder


def same(one, other):
    """Whether two runs of batches are so bit for bit."""
    one, other = list(one), list(other)
    assert len(one) == len(other)
    return all(
        torch.equal(i, j) and all(torch.equal(a, b) for a, b in zip(v, w, strict=True))
        for (v, i), (w, j) in zip(one, other, strict=True)
    )


def test_an_epoch(dataset):
    made = Batches(dataset, RECIPE, "cpu")
    assert made.steps == 3
    epochs = [list(made.epoch(epoch)) for epoch in range(2)]
    for epoch in epochs:
        assert len(epoch) == 3
        index = torch.cat([index for _, index in epoch])
        assert (index.dtype, len(index)) == (torch.int64, 18)
        assert len(index.unique()) == 18
        assert 0 <= index.min() <= index.max() < COUNT
        for views, _ in epoch:
            assert [v.shape for v in views] == [(BATCH, 3, 12, 12)] * 2
            assert all(v.dtype == torch.float32 for v in views)
            assert (views[0] - views[1]).abs().mean() > 0.1
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])


def test_index_names_the_image(dataset):
    # Views that change nothing are the image itself.
    recipe = dataclasses.replace(RECIPE, view1=View(order=()), view2=View(order=("gray",), gray_p=0))
    expected = torch.cat([images for images, _ in plain_batches(dataset, "train", True, "cpu")])
    for views, index in Batches(dataset, recipe, "cpu").epoch(4):
        assert torch.equal(views[0], expected[index])
        assert torch.equal(views[1], expected[index])


def test_goes_on_in_the_middle_of_an_epoch(dataset):
    made = Batches(dataset, RECIPE, "cpu")
    whole = list(made.epoch(3))
    next(made.epoch(1))  # an epoch that is left leaves nothing behind
    for first in range(made.steps + 1):
        assert same(made.epoch(3, first), whole[first:])
    assert same(Batches(dataset, RECIPE, "cpu").epoch(3), whole)


def test_seeds_and_epochs_differ(dataset):
    runs = [(seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1)]
    seen = [next(Batches(dataset, dataclasses.replace(RECIPE, seed=seed), "cpu").epoch(epoch)) for seed, epoch in runs]
    for (views, index), (other_views, other_index) in itertools.combinations(seen, 2):
        assert not torch.equal(index, other_index)
        assert not torch.equal(views[0], other_views[0])


def test_an_image_is_drawn_anew_each_epoch(dataset):
    recipe = dataclasses.replace(RECIPE, batch_size=COUNT)
    (first,), (second,) = (list(Batches(dataset, recipe, "cpu").epoch(epoch)) for epoch in (0, 1))
    one, other = (views[0][index.argsort()] for views, index in (first, second))
    assert ((one - other).abs().amax((1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch(dataset, world):
    alone = [index for _, index in Batches(dataset, RECIPE, "cpu").epoch(2)]
    shares = [list(Batches(dataset, RECIPE, "cpu", rank, world).epoch(2)) for rank in range(world)]
    together = [torch.cat([index for _, index in step]) for step in zip(*shares, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    # Each draws for itself: no two processes treat their first image alike.
    (first, _), (second, _) = (share[0] for share in shares[:2])
    assert not torch.equal(first[0], second[0])


def test_workers_change_nothing(folder):
    alone, two = (Batches(folder, RECIPE, "cpu", workers=workers) for workers in (0, 2))
    for epoch, first in ((0, 0), (1, 1), (0, 2)):
        assert same(two.epoch(epoch, first), alone.epoch(epoch, first))
    next(two.epoch(5))
    assert same(two.epoch(0), alone.epoch(0))
    assert all(
        torch.equal(a, b)
        for one, other in zip(
            plain_batches(folder, "test", True, "cpu", 5, 2), plain_batches(folder, "test", True, "cpu", 5), strict=True
        )
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_untouched(dataset, workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole = list(Batches(dataset, RECIPE, "cpu", workers=workers).epoch(0))
    list(plain_batches(dataset, "test", True, "cpu", workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert same(Batches(dataset, RECIPE, "cpu", workers=workers).epoch(0), whole)


def test_plain_images_in_order(dataset):
    for part, count in (("train", COUNT), ("test", 7 if isinstance(dataset, datasets.Dataset) else COUNT)):
        parts = list(plain_batches(dataset, part, False, "cpu", batch_size=4))
        images, labels = (torch.cat(values) for values in zip(*parts, strict=True))
        assert [len(i) for i, _ in parts[:-1]] == [4] * (count // 4)
        assert images.shape == (count, 3, 12, 12)
        assert 0 <= images.min() < images.max() <= 1
        if isinstance(dataset, datasets.Dataset):
            assert torch.equal(images, getattr(dataset, f"{part}_images") / 255)
            assert torch.equal(labels, getattr(dataset, f"{part}_labels"))
        else:
            assert labels.tolist() == [label for _, label in dataset.train]
        (normalized, _), *_ = plain_batches(dataset, part, True, "cpu", batch_size=4)
        mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
        torch.testing.assert_close(normalized, (images[:4] - mean) / std)
        (larger, _), *_ = plain_batches(dataset, part, True, "cpu", image_size=20)
        assert larger.shape == (count, 3, 20, 20)


def test_views_have_the_recipes_size(dataset):
    recipe = dataclasses.replace(RECIPE, image_size=16, normalize_images=False)
    views, _ = next(Batches(dataset, recipe, "cpu").epoch(0))
    assert [v.shape for v in views] == [(BATCH, 3, 16, 16)] * 2
    assert all(-1e-6 < v.min() < v.max() < 1 + 1e-6 for v in views)


def test_what_does_not_fit(dataset):
    for size in (0, COUNT + 1):
        with pytest.raises(ValueError, match=f"^batch_size: expected 1 to the {COUNT} training images, got {size}$"):
            Batches(dataset, dataclasses.replace(RECIPE, batch_size=size), "cpu")
    with pytest.raises(ValueError, match=r"^batch_size: expected a multiple of the 4 processes, got 6$"):
        Batches(dataset, RECIPE, "cpu", rank=0, world=4)
    with pytest.raises(ValueError, match=r"^rank: expected 0 to 1, got 2$"):
        Batches(dataset, RECIPE, "cpu", rank=2, world=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named(folder, tmp_path, workers):
    damaged = tmp_path / "damaged.png"
    with open(folder.train[0][0], "rb") as file:
        damaged.write_bytes(file.read()[:-200])
    broken = dataclasses.replace(folder, train=[(str(damaged), 0)] * COUNT)
    with pytest.raises(ValueError, match=r"data: .*damaged\.png is no complete image"):
        next(Batches(broken, RECIPE, "cpu", workers=workers).epoch(0))


def test_seeds_do_not_collide():
    keys = [(kind, *rest) for kind in range(3) for rest in ((0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0))]
    assert len({batches._seed(seed, *key) for seed in (0, 1, 2**32, 2**62) for key in keys}) == 4 * len(keys)


@pytest.mark.gpu
def test_on_a_gpu(dataset):
    made = Batches(dataset, RECIPE, "cuda")
    whole = list(made.epoch(0))
    assert all(tensor.is_cuda for views, index in whole for tensor in (*views, index))
    assert same(made.epoch(0, 1), whole[1:])
    on_cpu = [index for _, index in Batches(dataset, RECIPE, "cpu").epoch(0)]
    assert all(torch.equal(a.cpu(), b) for (_, a), b in zip(whole, on_cpu, strict=True))
