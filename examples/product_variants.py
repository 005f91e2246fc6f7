"""Supervised-contrastive embedding of product variants, in miniature: find the same product in another colour.

A shop's product comes in several colours, photographed a little differently each time; its embedding should say which
product it is, not which colour. Here a product is one real image (a digit of scikit-learn's, or an article of
Fashion-MNIST), its variants are that image tinted, shifted and lit at random, and SupCon (Khosla et al. 2020) pulls the
variants of a product together. Recall@1 is measured on products that training never saw: the nearest variant of all,
in another colour, is of the same product.

    python examples/product_variants.py                                  # digits, about a minute on two cores
    python examples/product_variants.py --data fashion-mnist --products 4000
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ssl_fast
from ssl_fast.formulas.rows import unit_rows
from ssl_fast.train import data

VARIANTS = 4  # of a product in a batch
SIDE = 16


def variants(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(B, S, S) grey images in [0, 1] -> (B, count, 3, S, S), each in a colour of its own on one of another."""
    size = (len(images), count)
    article, ground = torch.rand(2, *size, 3, 1, 1, generator=generator)
    picture = images[:, None, None]
    coloured = picture * (0.3 + 0.7 * article) + (1 - picture) * 0.3 * ground
    light = 0.7 + 0.6 * torch.rand(*size, 1, 1, 1, generator=generator)
    moved = [
        torch.roll(row, (int(dy), int(dx)), (-2, -1))
        for row, (dy, dx) in zip(
            coloured.flatten(0, 1), torch.randint(-1, 2, (len(images) * count, 2), generator=generator), strict=True
        )
    ]
    noise = 0.03 * torch.randn(*size, 3, *images.shape[1:], generator=generator)
    return (torch.stack(moved).view_as(noise) * light + noise).clamp(0, 1)


def encoder(dim: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    flat = 64 * (SIDE // 8) ** 2
    return nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 64), nn.Flatten(), nn.Linear(flat, dim))


@torch.no_grad()
def recall_at_1(embeddings: Tensor) -> float:
    """embeddings: (B, 2, D), two variants of each product. The share of the first whose nearest second is its own's."""
    queries, gallery = unit_rows(embeddings).unbind(1)
    return (((queries @ gallery.T).argmax(1)) == torch.arange(len(queries))).float().mean().item()


def grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 -> (N, SIDE, SIDE) in [0, 1]."""
    return F.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist or fashion-mnist:FOLDER")
    parser.add_argument("--products", type=int, default=1400, help="to train on")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    dataset = data.load(options.data)
    products, unseen = grey(dataset.train_images[: options.products]), grey(dataset.test_images[:300])
    test = variants(unseen, 2, torch.Generator().manual_seed(1))
    model, loss = encoder(64), ssl_fast.SupConLoss(options.temperature)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)

    def score() -> float:
        model.eval()
        with torch.no_grad():
            found = recall_at_1(model(test.flatten(0, 1)).view(len(test), 2, -1))
        model.train()
        return found

    print(f"{len(products)} products to train on, {len(unseen)} unseen ones to find")
    print(f"recall@1 of raw pixels        {recall_at_1(test.flatten(2)):.3f}")
    print(f"recall@1 before training      {score():.3f}")
    for epoch in range(1, options.epochs + 1):
        total, batches = 0.0, torch.randperm(len(products), generator=generator).split(256)
        for batch in batches:
            views = variants(products[batch], VARIANTS, generator)
            features = model(views.flatten(0, 1)).view(len(batch), VARIANTS, -1)  # (B, V, D): a product a row
            value = loss(features)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item()
        if epoch % 5 == 0 or epoch == options.epochs:
            print(f"epoch {epoch:3}  loss {total / len(batches):.3f}  recall@1 {score():.3f}", flush=True)
    print(f"recall@1 after training       {score():.3f}")


if __name__ == "__main__":
    main()
