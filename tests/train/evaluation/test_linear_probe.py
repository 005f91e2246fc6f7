"""The linear probe: the published schedules, what it learns, and that the encoder stays as it was."""

import dataclasses
import math

import pytest
import torch
from PIL import Image
from torch import nn

from ssl_fast.train.data.datasets import Dataset, FolderDataset
from ssl_fast.train.evaluation import linear_probe
from ssl_fast.train.recipes import RECIPES, LinearProtocol

PROTOCOLS = {name: recipe.linear_protocol for name, recipe in RECIPES.items() if not name.endswith("-small")}
QUICK = LinearProtocol(1.0, 32, 12, learning_rate_scale="none")
CLASSES = 6


def clusters(rows, seed=0):
    """Features around a direction a class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    return torch.eye(8)[labels] + 0.1 * torch.randn(rows, 8, generator=generator), labels


def bars(rows, seed=0):
    """Images (rows, 1, 12, 12) with grey values that tell the class, whatever crop and flip show of them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    noise = torch.randint(-8, 9, (rows, 1, 12, 12), generator=generator)
    return (30 + 35 * labels[:, None, None, None] + noise).to(torch.uint8), labels


def bars_dataset(**changes):
    (train_images, train_labels), (test_images, test_labels) = bars(120), bars(60, seed=1)
    values = {"train_images": train_images, "train_labels": train_labels, "mean": (0.4,), "std": (0.3,)}
    values |= {"test_images": test_images, "test_labels": test_labels, "name": "bars", "image_size": 12, "flip": True}
    return Dataset(**{**values, **changes})


class Bumps(nn.Module):
    """An encoder of images by their brightness, with a BatchNorm and a Dropout."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.norm = nn.BatchNorm1d(CLASSES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        centres = (30 + 35 * torch.arange(CLASSES)) / 255
        return self.dropout(self.norm((-(self.scale * (images.mean((1, 2, 3))[:, None] - centres)).square()).exp()))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("moco-v1", {0: 30, 59.9: 30, 60: 3, 79.9: 3, 80: 0.3, 99.9: 0.3}),
        # * batch / 256, half a cosine, set at the beginning of each epoch.
        ("moco-v3", {0: 0.4, 45: 0.2, 45.7: 0.2, 30: 0.3, 60: 0.1}),
        ("moco-v3-vit", {0: 12, 45: 6}),
        # ... and at every step.
        ("simclr", {0: 1.6, 45: 0.8, 22.5: 0.8 * (1 + math.sqrt(0.5)), 90: 0}),
        ("simclr-cifar", {0: 0.2, 50: 0.1}),
    ],
)
def test_schedules_as_published(name, rates):
    for progress, rate in rates.items():
        assert PROTOCOLS[name].rate(progress) == pytest.approx(rate, abs=1e-12), progress


def test_protocols_as_published():
    def numbers(name):
        protocol = PROTOCOLS[name]
        return (protocol.batch_size, protocol.epochs, protocol.momentum, protocol.nesterov, protocol.weight_decay)

    assert numbers("moco-v1") == numbers("moco-v2") == numbers("instdisc") == (256, 100, 0.9, False, 0)
    assert numbers("moco-v3") == numbers("moco-v3-vit") == (1024, 90, 0.9, False, 0)
    assert numbers("simclr") == (4096, 90, 0.9, True, 1e-6)
    assert numbers("simclr-cifar") == (512, 100, 0.9, True, 0)
    for name, recipe in RECIPES.items():
        if name.endswith("-small"):
            assert recipe.linear_protocol == PROTOCOLS[name.removesuffix("-small")]


def test_a_smaller_set_has_a_smaller_batch_and_rate():
    fitted = PROTOCOLS["simclr"].fitted(512)
    assert (fitted.batch_size, fitted.rate(0)) == (512, pytest.approx(0.2))
    assert PROTOCOLS["moco-v1"].fitted(100).rate(0) == 30
    assert PROTOCOLS["moco-v1"].fitted(10**6) == PROTOCOLS["moco-v1"]


def test_the_optimizer_follows_the_schedule(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self: seen.append(dict(self.param_groups[0], params=None)) or step(self)
    )
    protocol = LinearProtocol(
        0.5, 64, 4, schedule_by="step", momentum=0.8, nesterov=True, weight_decay=1e-5
    )  # 0.125 at the batch of 64
    linear_probe.probe_features(*clusters(100), *clusters(30), protocol)
    cosine = [0.0625 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)]
    assert [group["lr"] for group in seen] == pytest.approx(cosine)
    assert {(group["momentum"], group["nesterov"], group["weight_decay"]) for group in seen} == {(0.8, True, 1e-5)}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_learns_separable_features(name):
    # Some thousand steps in the original, 60 or so here.
    protocol = dataclasses.replace(PROTOCOLS[name], epochs=min(30, PROTOCOLS[name].epochs), batch_size=128)
    results = linear_probe.probe_features(*clusters(240), *clusters(120, seed=1), protocol)
    assert results["linear_top1"] > 0.95
    assert list(results) == ["linear_top1", "linear_top5"]


def fitted(seed):
    """The batches of two epochs and the classifier's weight, of fixed features."""
    kept = []
    fit = linear_probe.fit

    def keeping(epoch, *arguments):
        kept.extend(torch.cat([labels.float() for _, labels in epoch(number)]) for number in range(2))
        kept.append(fit(epoch, *arguments).weight)
        return nn.Linear(8, CLASSES)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "fit", keeping)
        linear_probe.probe_features(*clusters(100), *clusters(30), dataclasses.replace(QUICK, epochs=2), seed=seed)
    return kept


def test_fixed_features_repeat_from_a_seed():
    first = fitted(1)
    torch.rand(3)
    assert all(torch.equal(*both) for both in zip(first, fitted(1), strict=True))
    assert not any(torch.equal(*both) for both in zip(first, fitted(2), strict=True))
    assert not torch.equal(first[0], first[1])  # another order in each epoch
    assert first[0].sort().values.tolist() == clusters(100)[1].sort().values.tolist()  # every image once


def test_the_callers_randomness_stays():
    state = torch.get_rng_state()
    linear_probe.probe_features(*clusters(100), *clusters(30), dataclasses.replace(QUICK, epochs=1))
    linear_probe.probe_images(Bumps(), bars_dataset(), dataclasses.replace(QUICK, epochs=1), False, "cpu")
    assert torch.equal(state, torch.get_rng_state())


def test_mixed_up_labels_are_chance_and_rotated_ones_never_right():
    features, labels = clusters(480)
    test_features, test_labels = clusters(480, seed=1)
    mixed = labels[torch.randperm(480)]
    chance = linear_probe.probe_features(features, mixed, test_features, test_labels, QUICK)["linear_top1"]
    assert chance == pytest.approx(1 / CLASSES, abs=0.1)
    rotated = (labels + 1) % CLASSES
    assert linear_probe.probe_features(features, rotated, test_features, test_labels, QUICK)["linear_top1"] < 0.02


def test_accuracies_by_hand():
    classifier = nn.Linear(7, 7, bias=False)
    classifier.weight.data = torch.eye(7)
    logits = torch.arange(7.0).repeat(4, 1)  # 6 first, then 5, 4, 3, 2
    labels = torch.tensor([6, 2, 1, 5])
    assert linear_probe.accuracy(classifier, logits, labels) == {"linear_top1": 0.25, "linear_top5": 0.75}
    small = nn.Linear(7, 5)
    assert list(linear_probe.accuracy(small, logits, torch.tensor([0, 1, 2, 3]))) == ["linear_top1"]


@pytest.mark.parametrize("under_no_grad", [False, True])
def test_the_encoder_is_untouched(under_no_grad):
    encoder = Bumps()
    encoder.dropout.eval()
    encoder.scale.grad = torch.tensor(7.0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.set_grad_enabled(not under_no_grad):
        results = linear_probe.probe_images(encoder, bars_dataset(), QUICK, False, "cpu")
    assert results["linear_top1"] > 0.9
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert [module.training for module in encoder.modules()] == [True, True, False]
    assert encoder.scale.grad == 7
    assert encoder.norm.weight.grad is None
    assert encoder.scale.requires_grad


def watched(dataset, epochs=2, **options):
    """The training images that the encoder sees, and the result."""
    shown = []

    class Watched(Bumps):
        def forward(self, images):
            shown.append(images)
            return super().forward(images)

    protocol = dataclasses.replace(QUICK, epochs=epochs)
    result = linear_probe.probe_images(Watched().eval(), dataset, protocol, True, "cpu", **options)
    return shown[1:], result  # the first are the test images


def test_images_are_drawn_anew_each_epoch_and_repeat_from_a_seed():
    first, result = watched(bars_dataset(), seed=5)
    assert len(first) == 2 * (120 // 32)
    assert len({tuple(images.flatten().tolist()) for images in first}) == len(first)
    again, same_result = watched(bars_dataset(), seed=5)
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))
    assert result == same_result
    assert not torch.equal(first[0], watched(bars_dataset(), seed=6)[0][0])
    assert {images.shape[1:] for images in watched(bars_dataset(), image_size=20)[0]} == {(1, 20, 20)}


def test_images_without_a_label_take_no_part():
    dataset = bars_dataset()
    more = torch.cat([torch.full((70, 1, 12, 12), 255, dtype=torch.uint8), dataset.train_images])
    labels = torch.cat([torch.full((70,), -1), dataset.train_labels])
    with_unlabelled = dataclasses.replace(dataset, train_images=more, train_labels=labels)
    (shown, result), (expected, same_result) = watched(with_unlabelled), watched(dataset)
    assert all(torch.equal(*both) for both in zip(shown, expected, strict=True))
    assert result == same_result


def test_a_set_smaller_than_the_batch():
    protocol = dataclasses.replace(PROTOCOLS["simclr"], epochs=1)
    assert set(linear_probe.probe_images(Bumps(), bars_dataset(), protocol, False, "cpu")) == {
        "linear_top1",
        "linear_top5",
    }


def test_a_folder_of_images(tmp_path):
    parts = {}
    for part, (images, labels) in (("train", bars(60)), ("test", bars(24, seed=1))):
        parts[part] = []
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = str(tmp_path / f"{part}{number}.png")
            Image.fromarray(image[0].numpy()).save(path)
            parts[part].append((path, label))
    dataset = FolderDataset("bars", parts["train"], parts["test"], CLASSES, image_size=12)
    assert linear_probe.probe_images(Bumps(), dataset, QUICK, False, "cpu")["linear_top1"] > 0.9


def test_a_loss_that_is_not_finite():
    features, labels = clusters(60)
    with pytest.raises(ValueError, match=r"loss: .* in epoch \d+; a smaller learning_rate may help"):
        linear_probe.probe_features(
            features * 1e20, labels, features, labels, dataclasses.replace(QUICK, learning_rate=1e20)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"learning_rate": math.inf}, "learning_rate: expected a finite number above 0, got inf"),
    ],
)
def test_no_such_protocol(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, **changes)


def test_labels_that_do_not_fit():
    features, labels = clusters(12)
    with pytest.raises(ValueError, match=r"train_features, train_labels: .* got \(12, 8\) and \(5,\)"):
        linear_probe.probe_features(features, labels[:5], features, labels, QUICK)
