"""The first stage of HobbitLong/SupContrast, on scikit-learn's digits: two views of each image, their labels, SupCon.

python examples/supcontrast_digits.py --steps 300
python examples/supcontrast_digits.py --method SimCLR  # without labels
"""

from __future__ import annotations

import argparse

import torch
from digits import accuracy, view
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
