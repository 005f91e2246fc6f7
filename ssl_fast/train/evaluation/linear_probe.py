"""The papers' linear probe: a linear classifier on a frozen encoder, trained by SGD on cropped and flipped images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batches import Batches, plain_batches
from ..data.datasets import Dataset, FolderDataset
from ..recipes import LinearProtocol, Recipe, View
from .features import encode_batches

CROP_FLIP = View(order=("crop", "flip"))  # the augmentation of all published protocols
INITIAL = 0.01  # standard deviation of the initial weights in all of them


def probe_features(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    protocol: LinearProtocol,
    classes: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Trains and tests the linear classifier of a protocol on fixed features, without the protocol's augmentation.

    The published learning rates suit the features of their encoders. Other features may need another one:
    dataclasses.replace(protocol, learning_rate=...).

    Args:
        train_features: (N, D) float32.
        train_labels: (N,) integers from 0.
        test_features: (M, D) float32.
        test_labels: (M,) integers from 0.
        protocol: How to train; its batch is at most the training set.
        classes: Number of classes; None takes one more than the largest label.
        seed: Of the initial weights and the order of the rows; the same seed gives the same result.

    Returns:
        {"linear_top1": share}, with more than 5 classes also "linear_top5", after the last epoch.

    Raises:
        ValueError: for labels that do not fit the features, and a loss that is not finite.
    """
    if train_features.dim() != 2 or len(train_features) != len(train_labels) or not len(train_labels):
        shapes = f"{tuple(train_features.shape)} and {tuple(train_labels.shape)}"
        raise ValueError(f"train_features, train_labels: expected (N, D) and (N,), N from 1, got {shapes}")
    classes = classes or int(torch.cat([train_labels, test_labels]).max()) + 1
    protocol = protocol.fitted(len(train_labels))

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(_mixed(seed, number))
        order = torch.randperm(len(train_labels), generator=generator).to(train_labels.device)
        for rows in order.split(protocol.batch_size):
            yield train_features[rows], train_labels[rows]

    steps = -(-len(train_labels) // protocol.batch_size)
    classifier = fit(epoch, steps, train_features, classes, protocol, seed)
    return accuracy(classifier, test_features, test_labels)


def probe_images(
    encoder: nn.Module,
    dataset: Dataset | FolderDataset,
    protocol: LinearProtocol,
    normalize: bool,
    device: torch.device | str,
    image_size: int = 0,
    view: View = CROP_FLIP,
    workers: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Trains and tests the linear classifier of a protocol as published: every epoch draws and encodes new crops.

    Args:
        encoder: (n, C, S, S) to (n, D), on `device`. Its weights, statistics, gradients and modes stay as they are.
        dataset: Of data.load; training images without a label are left out.
        protocol: How to train; its batch is at most the training set.
        normalize: Recipe.normalize_images, as the encoder was trained.
        device: Where to compute.
        image_size: Recipe.image_size, as the encoder was trained.
        view: The augmentation; it flips only where the data set may be flipped.
        workers: Processes that read a folder's images.
        seed: Of the initial weights, the order and the crops; the same seed gives the same result.

    Returns:
        {"linear_top1": share}, with more than 5 classes also "linear_top5", after the last epoch. The best epoch is not
        taken, since the test images would choose it.

    Raises:
        ValueError: for a loss that is not finite.
    """
    test = encode_batches(
        encoder, plain_batches(dataset, "test", normalize, device, workers=workers, image_size=image_size)
    )
    dataset, train_labels = _labelled(dataset)
    protocol = protocol.fitted(len(train_labels))
    recipe = Recipe(
        seed=seed,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        image_size=image_size,
        normalize_images=normalize,
        view1=view,
    )
    drawn = Batches(dataset, recipe, device, workers=workers)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for (images,), index in drawn.epoch(number):
            yield encode_batches(encoder, [(images, train_labels[index.cpu()])])

    classifier = fit(epoch, drawn.steps, test[0], dataset.classes, protocol, seed)
    return accuracy(classifier, *test)


def fit(
    epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
    like: Tensor,
    classes: int,
    protocol: LinearProtocol,
    seed: int = 0,
) -> nn.Linear:
    """Trains the classifier.

    Args:
        epoch: Returns the batches of an epoch, by its number: features (n, D) and labels (n,).
        steps: Batches an epoch.
        like: Features (N, D) whose width, dtype and device the classifier takes.
        classes: Number of classes.
        protocol: How to train.
        seed: Of the initial weights.

    Returns:
        The classifier after the last epoch.

    Raises:
        ValueError: for a loss that is not finite.
    """
    # The generator is its own, so that the caller's random numbers stay the same.
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, like.shape[1], generator=generator) * INITIAL
    classifier = nn.utils.skip_init(nn.Linear, like.shape[1], classes, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.zero_()
    optimizer = torch.optim.SGD(
        classifier.parameters(), protocol.rate(0), protocol.momentum, 0, protocol.weight_decay, protocol.nesterov
    )
    for number in range(protocol.epochs):
        loss = torch.zeros(())
        for step, (features, labels) in enumerate(epoch(number)):
            optimizer.param_groups[0]["lr"] = protocol.rate(number + step / steps)
            with torch.enable_grad():
                loss = F.cross_entropy(classifier(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = float(loss.detach())
        if not math.isfinite(last):
            raise ValueError(f"loss: {last} in epoch {number + 1}; a smaller learning_rate may help")
    return classifier


@torch.no_grad()
def accuracy(classifier: nn.Linear, features: Tensor, labels: Tensor) -> dict[str, float]:
    """Measures the share of rows whose label is the first of the classes, with more than 5 classes also among 5."""
    right = classifier(features).topk(min(5, classifier.out_features)).indices == labels[:, None]
    top1 = {"linear_top1": float(right[:, 0].float().mean())}
    return top1 if classifier.out_features <= 5 else {**top1, "linear_top5": float(right.any(1).float().mean())}


def _labelled(dataset: Dataset | FolderDataset) -> tuple[Dataset | FolderDataset, Tensor]:
    """Returns the data set without training images of the label -1, and the labels of the others on the CPU."""
    if isinstance(dataset, FolderDataset):
        return dataset, torch.tensor([label for _, label in dataset.train])
    kept = dataset.train_labels >= 0
    if not bool(kept.all()):  # a data set whose images all have labels is not copied
        dataset = dataclasses.replace(
            dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept]
        )
    return dataset, dataset.train_labels.cpu()


def _mixed(seed: int, epoch: int) -> int:
    """Returns a seed for an epoch of the run with this seed."""
    return (seed * 1_000_003 + epoch) % 2**63
