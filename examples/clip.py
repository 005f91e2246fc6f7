"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) in plain PyTorch: coloured digits and their captions.

An image network and a text network are trained so that an image and its own caption are near, and all other pairs of
the batch are not. The test is zero-shot: of all 60 captions, is the nearest one to an unseen image its own?

    python examples/clip.py                 # under half a minute on one core
    python examples/clip.py --loss siglip
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import ssl_fast

COLOURS = {
    "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "pink": (1, 0, 1), "white": (1, 1, 1),
}  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONS = [f"a {colour} {number}" for number in NUMBERS for colour in COLOURS]  # 60
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
TOKENS = torch.tensor([[WORDS.index(word) for word in caption.split()] for caption in CAPTIONS])  # (60, 3)


def coloured(images: Tensor, colours: Tensor) -> Tensor:
    """(N, 8, 8) grey images and the numbers of their colours -> (N, 3, 8, 8), with noise."""
    tints = torch.tensor(list(COLOURS.values())).float()[colours]
    return images[:, None] * tints[:, :, None, None] + 0.1 * torch.randn(len(images), 3, 8, 8)


def image_network(dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4 * 4, dim),
    )  # fmt: skip


def text_network(dim: int) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(len(WORDS), 64), nn.ReLU(), nn.Linear(64, dim))


@torch.no_grad()
def zero_shot_accuracy(images_to: nn.Module, texts_to: nn.Module, images: Tensor, captions: Tensor) -> float:
    """The share of images whose nearest caption is theirs."""
    images_to.eval()
    similarity = F.normalize(images_to(images)) @ F.normalize(texts_to(TOKENS)).T
    images_to.train()
    return (similarity.argmax(dim=1) == captions).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=["clip", "siglip"], default="clip")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)

    data = load_digits()
    images, labels = torch.tensor(data.images).float() / 16, torch.tensor(data.target)
    train, test = torch.randperm(len(images)).split([1437, 360])
    of_number = [train[labels[train] == number] for number in range(10)]
    test_colours = torch.randint(len(COLOURS), (len(test),))
    judged = coloured(images[test], test_colours), labels[test] * len(COLOURS) + test_colours

    images_to, texts_to = image_network(32), text_network(32)
    if options.loss == "clip":
        contrast = ssl_fast.ClipLoss(temperature=ssl_fast.LearnableTemperature(init=0.07))
    else:  # each pair is a decision of its own, and most are "no": a learnt bias starts there
        bias = nn.Parameter(torch.tensor(-10.0))
        contrast = ssl_fast.SigLipLoss(temperature=ssl_fast.LearnableTemperature(init=0.1), bias=bias)
    learnt = [*images_to.parameters(), *texts_to.parameters(), *contrast.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=0.0)

    print(f"zero-shot accuracy before training  {zero_shot_accuracy(images_to, texts_to, *judged):.3f}")
    for step in range(1, options.steps + 1):
        # One image for each caption, so that no other caption of the batch is also right.
        chosen = torch.stack([rows[torch.randint(len(rows), (len(COLOURS),))] for rows in of_number]).flatten()
        a = images_to(coloured(images[chosen], torch.arange(60) % len(COLOURS)))  # (60, 32)
        b = texts_to(TOKENS)  # (60, 32)
        loss = contrast(a, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(f"step {step:4}  loss {loss.item():.3f}  temperature {contrast.temperature().item():.3f}", flush=True)
    print(f"zero-shot accuracy after training   {zero_shot_accuracy(images_to, texts_to, *judged):.3f}")


if __name__ == "__main__":
    main()
