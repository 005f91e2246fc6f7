"""lightly's MoCo tutorial on scikit-learn's digits, with the loss and the momentum update of ssl_fast.

A query encoder and its momentum copy, lightly's projection heads and momentum schedule, NT-Xent with a memory bank:
the loop is the tutorial's, one line of imports is another. Accuracy is by the nearest neighbour among the training
images, all of them moved, turned and lit at random.

    python examples/lightly_moco.py --steps 300
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from digits import accuracy
from digits import view as any_view
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

# The changed line. It was:
#   from lightly.loss import NTXentLoss
#   from lightly.models.utils import update_momentum
from ssl_fast.compat.lightly import NTXentLoss, update_momentum
from ssl_fast.train import data

view = partial(any_view, light=0.2)


class MoCo(nn.Module):
    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone, self.projection_head = backbone, MoCoProjectionHead(width, width, 64)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x))

    @torch.no_grad()
    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits")
    train, train_labels = digits.train_images.float() / 255, digits.train_labels
    gallery, test = (view(train), train_labels), (view(digits.test_images.float() / 255), digits.test_labels)
    model = MoCo(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32)), width=32
    )
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(1024, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    print(f"kNN accuracy before training  {accuracy(model.backbone, gallery, test):.3f}")
    for step in range(options.steps):
        momentum = cosine_schedule(step, options.steps, 0.99, 1)
        update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)
        images = train[torch.randint(len(train), (options.batch,))]
        query, key = model(view(images)), model.forward_momentum(view(images))
        loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19 or step + 1 == options.steps:
            print(f"step {step + 1:4}  loss {loss.item():.3f}", flush=True)
    print(f"kNN accuracy after training   {accuracy(model.backbone, gallery, test):.3f}")


if __name__ == "__main__":
    main()
