"""MoCo v2 (He et al. 2020, Chen et al. 2020) in plain PyTorch on digits: queue, momentum update, fused InfoNCE.

A query is to find its key, another view of the same image, among the keys of earlier batches that a queue holds. Keys
come from a second network, a slow average of the first, so that old keys stay comparable with new ones. The number of
negatives (1024 here) no longer depends on the batch (128 here). Labels only measure what the features know.

    python examples/moco.py                 # under half a minute on one core
"""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import ssl_fast


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (1437, 1, 8, 8) in [0, 1] and their labels, then 360 test images and theirs."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float().unsqueeze(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def random_view(images: Tensor) -> Tensor:
    """(N, 1, 8, 8) -> the same images, each turned, scaled and moved at random, with noise."""
    angle, scale = 0.3 * torch.randn(len(images)), 1 + 0.1 * torch.randn(len(images))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    dx, dy = 0.15 * torch.randn(2, len(images))
    matrix = torch.stack([cos, -sin, dx, sin, cos, dy], 1).view(-1, 2, 3)  # an affine map for each image
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.1 * torch.randn_like(images)


def encoder() -> nn.Module:
    """(N, 1, 8, 8) -> features (N, 128)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 128),
    )  # fmt: skip


@torch.no_grad()
def knn_accuracy(network: nn.Module, train: Tensor, labels: Tensor, test: Tensor, answers: Tensor) -> float:
    """The share of test images whose most similar training image has their label."""
    network.eval()
    bank, queries = F.normalize(network(train)), F.normalize(network(test))
    network.train()
    nearest = (queries @ bank.T).argmax(dim=1)
    return (labels[nearest] == answers).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    train, labels, test, answers = digits()
    judged = train, labels, random_view(test), answers  # test digits are moved; the training digits are as they are
    backbone, head = encoder(), nn.Sequential(nn.ReLU(), nn.Linear(128, 64))
    query_network = nn.Sequential(backbone, head)
    key_network = copy.deepcopy(query_network).requires_grad_(False)
    queue = ssl_fast.NegativeQueue(size=1024, dim=64)
    with torch.no_grad():  # real keys: against the random rows that it starts with, the first losses would be too easy
        queue.enqueue_(F.normalize(key_network(random_view(train[:1024]))))
    contrast = ssl_fast.InfoNCELoss(temperature=0.2)
    optimizer = torch.optim.AdamW(query_network.parameters(), lr=2e-3)

    print(f"kNN accuracy of raw pixels     {knn_accuracy(nn.Flatten(), *judged):.3f}")
    print(f"kNN accuracy before training   {knn_accuracy(backbone, *judged):.3f}")
    for step in range(1, options.steps + 1):
        images = train[torch.randint(len(train), (options.batch,))]
        query = query_network(random_view(images))  # (N, 64), not normalised: the loss does that
        ssl_fast.ema_update_(key_network, query_network, momentum=0.99, buffers="keep")
        with torch.no_grad():
            key = F.normalize(key_network(random_view(images)))
        loss = contrast(query, key, queue)  # against the queue as it is: without this batch's keys
        queue.enqueue_(key)  # the oldest keys make room
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(f"step {step:4}  loss {loss.item():.3f}", flush=True)
    print(f"kNN accuracy after training    {knn_accuracy(backbone, *judged):.3f}")


if __name__ == "__main__":
    main()
