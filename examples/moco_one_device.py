"""The training loop of facebookresearch/moco on one device, which the original refuses, on scikit-learn's digits.

python examples/moco_one_device.py --steps 300
python examples/moco_one_device.py --fused       # model.loss: without the logits, the same numbers
"""

from __future__ import annotations

import argparse

import torch
from digits import accuracy, view
from torch import Tensor, nn
from torch.nn import functional as F

# The changed line. It was:
#   from moco.builder import MoCo
from ssl_fast.compat.moco import MoCo
from ssl_fast.train import data


class Encoder(nn.Module):
    """What moco asks of one: num_classes, and for mlp a last layer `fc`."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32))
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.body(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=100, help="the queue of 1024 is no multiple of it")
    parser.add_argument("--fused", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits")
    train = digits.train_images.float() / 255
    gallery = view(train), digits.train_labels
    test = view(digits.test_images.float() / 255), digits.test_labels
    model = MoCo(Encoder, dim=32, K=1024, m=0.99, T=0.2, mlp=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.encoder_q.parameters(), lr=2e-3)

    print(f"kNN accuracy before training  {accuracy(model.encoder_q.body, gallery, test):.3f}")
    for step in range(options.steps):
        images = train[torch.randint(len(train), (options.batch,))]
        queries, keys = view(images), view(images)
        if options.fused:
            loss, hits = model.loss(im_q=queries, im_k=keys), ""
        else:
            output, target = model(im_q=queries, im_k=keys)
            loss, hits = criterion(output, target), f"  top-1 {(output.argmax(1) == target).float().mean().item():.3f}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 or step + 1 == options.steps:
            print(f"step {step + 1:4}  loss {loss.item():.3f}{hits}", flush=True)
    print(f"kNN accuracy after training   {accuracy(model.encoder_q.body, gallery, test):.3f}")


if __name__ == "__main__":
    main()
