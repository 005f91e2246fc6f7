"""InfoNCE of info-nce-pytorch on digits: the README's query, positive and negatives, in a training loop.

The query and its positive key are two views of an image: shifted, rotated a little, with noise. The negative keys are
views of other images, the same for all queries (`negative_mode="unpaired"`). The embedding is judged by how often the
nearest training images of a moved test image have its label; training never sees labels.

    python examples/info_nce_digits.py
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from digits import view as any_view
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_fast.compat.info_nce import InfoNCE  # was: from info_nce import InfoNCE
from ssl_fast.train import data
from ssl_fast.train.evaluation import knn_accuracy

BATCH, NEGATIVES, SIDE = 256, 512, 16

view = partial(any_view, turn=0.5, size=0.15)


def images(x: Tensor) -> Tensor:
    return F.interpolate(x.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    digits = data.load("digits")
    train, test = images(digits.train_images), view(images(digits.test_images))
    convolutions = [nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    encoder = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * (SIDE // 4) ** 2, 64))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    loss = InfoNCE(temperature=0.1, negative_mode="unpaired")

    def accuracy() -> float:
        with torch.no_grad():
            return knn_accuracy(encoder(train), digits.train_labels, encoder(test), digits.test_labels, k=5)

    print(f"kNN accuracy before training {accuracy():.3f}")
    for step in range(1, options.steps + 1):
        chosen = torch.randperm(len(train))
        queried, others = train[chosen[:BATCH]], train[chosen[BATCH : BATCH + NEGATIVES]]
        query, positive_key, negative_keys = encoder(view(queried)), encoder(view(queried)), encoder(view(others))
        value = loss(query, positive_key, negative_keys)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step in (1, options.steps) or step % 50 == 0:
            print(f"step {step:4}  loss {value.item():.3f}", flush=True)
    print(f"kNN accuracy after training  {accuracy():.3f}")


if __name__ == "__main__":
    main()
