"""MoCo with pytorch-metric-learning on digits: its notebook's CrossBatchMemory around NTXentLoss, one line changed.

A query encoder sees one view of an image, a slowly moving key encoder another. Every image has a label of its own, so
that its key is the only positive; keys alone are enqueued (`enqueue_mask`), and the memory's older keys are the
negatives. The embedding is judged by how often the nearest training images of a moved test image have its label;
training never sees labels.

    python examples/pytorch_metric_learning_moco.py
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from digits import view as any_view
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_fast.compat.pytorch_metric_learning import (
    CrossBatchMemory,
    NTXentLoss,
)  # was: ... pytorch_metric_learning.losses
from ssl_fast.train import data
from ssl_fast.train.evaluation import knn_accuracy

BATCH, MEMORY, MOMENTUM, SIDE, DIM = 256, 1024, 0.98, 16, 64

view = partial(any_view, turn=0.5, size=0.15)


def images(x: Tensor) -> Tensor:
    return F.interpolate(x.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = data.load("digits")
    train, test = images(digits.train_images), view(images(digits.test_images))
    convolutions = [nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    query_encoder = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * (SIDE // 4) ** 2, DIM))
    key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
    optimizer = torch.optim.Adam(query_encoder.parameters(), lr=2e-3)
    loss = CrossBatchMemory(NTXentLoss(temperature=0.1), DIM, memory_size=MEMORY)
    enqueue_mask = torch.arange(2 * BATCH) >= BATCH

    def accuracy() -> float:
        with torch.no_grad():
            features = query_encoder(train), query_encoder(test)
        return knn_accuracy(features[0], digits.train_labels, features[1], digits.test_labels, k=5)

    print(f"kNN accuracy before training {accuracy():.3f}")
    for step in range(1, options.steps + 1):
        batch = train[torch.randperm(len(train))[:BATCH]]
        with torch.no_grad():
            for key, query in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
                key.lerp_(query, 1 - MOMENTUM)
            keys = key_encoder(view(batch))
        embeddings = torch.cat([query_encoder(view(batch)), keys])
        labels = (torch.arange(BATCH) + step * BATCH).repeat(2)  # each image its own class
        value = loss(embeddings, labels, enqueue_mask=enqueue_mask)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step in (1, options.steps) or step % 50 == 0:
            print(f"step {step:4}  loss {value.item():.3f}", flush=True)
    print(f"kNN accuracy after training  {accuracy():.3f}")


if __name__ == "__main__":
    main()
