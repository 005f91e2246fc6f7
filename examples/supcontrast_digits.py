"""The first stage of HobbitLong/SupContrast, on scikit-learn's digits: two views of each image, their labels, SupCon.

python examples/supcontrast_digits.py --steps 300
python examples/supcontrast_digits.py --method SimCLR  # without labels
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The changed line. It was:
#   from losses import SupConLoss
from ssl_fast.compat.supcontrast import SupConLoss
from ssl_fast.train import data


class SupConEncoder(nn.Module):
    """The encoder and its projection head, which normalises: the loss does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32)
        )
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.encoder(x)), dim=1)


def view(images: Tensor) -> Tensor:
    """(N, 1, 8, 8) turned, scaled and moved by up to a pixel, with noise, at random."""
    turn, scale = 0.3 * torch.randn(len(images)), 1 + 0.1 * torch.randn(len(images))
    cos, sin, (dx, dy) = turn.cos() * scale, turn.sin() * scale, 0.15 * torch.randn(2, len(images))
    matrix = torch.stack([cos, -sin, dx, sin, cos, dy], 1).view(-1, 2, 3)
    moved = F.grid_sample(images, F.affine_grid(matrix, list(images.shape), False), align_corners=False)
    return moved + 0.1 * torch.randn_like(images)


@torch.no_grad()
def accuracy(encoder: nn.Module, gallery: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Of the test images, each with the label of the most similar one in the gallery."""
    encoder.eval()
    bank, queries = (F.normalize(encoder(images)) for images, _ in (gallery, test))
    encoder.train()
    return (gallery[1][(queries @ bank.T).argmax(1)] == test[1]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--method", choices=["SupCon", "SimCLR"], default="SupCon")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits")
    train, train_labels = digits.train_images.float() / 255, digits.train_labels
    gallery, test = (view(train), train_labels), (view(digits.test_images.float() / 255), digits.test_labels)
    model = SupConEncoder()
    criterion = SupConLoss(temperature=options.temperature)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    print(f"kNN accuracy before training  {accuracy(model.encoder, gallery, test):.3f}")
    for step in range(options.steps):
        chosen = torch.randint(len(train), (options.batch,))
        images, labels = torch.cat([view(train[chosen]), view(train[chosen])]), train_labels[chosen]
        f1, f2 = model(images).split(options.batch)
        features = torch.stack([f1, f2], dim=1)  # (B, 2, D)
        loss = criterion(features, labels) if options.method == "SupCon" else criterion(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 or step + 1 == options.steps:
            print(f"step {step + 1:4}  loss {loss.item():.3f}", flush=True)
    print(f"kNN accuracy after training   {accuracy(model.encoder, gallery, test):.3f}")


if __name__ == "__main__":
    main()
