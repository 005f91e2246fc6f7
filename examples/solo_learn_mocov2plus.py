"""solo-learn's MoCo v2+ on scikit-learn's digits, with the loss and the momentum updater of ssl_fast.

Its method in a plain loop: two queues, one of each view's keys, each view's queries against the other's keys, the mean
of both, and the momentum update after the optimizer's step. Accuracy is by the nearest neighbour among the training
images, all of them moved, turned and lit at random.

    python examples/solo_learn_mocov2plus.py  # some seconds on one core
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from digits import accuracy
from digits import view as any_view
from torch import Tensor, nn
from torch.nn import functional as F

# was: from solo.losses.mocov2plus import mocov2plus_loss_func
#      from solo.utils.momentum import MomentumUpdater, initialize_momentum_params
from ssl_fast.compat.solo_learn import MomentumUpdater, initialize_momentum_params, mocov2plus_loss_func
from ssl_fast.train import data

BATCH, QUEUE, DIM = 128, 1024, 64

view = partial(any_view, light=0.2)


def network() -> nn.ModuleDict:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32))
    return nn.ModuleDict({"backbone": backbone, "projector": nn.Sequential(nn.ReLU(), nn.Linear(32, DIM))})


def embed(model: nn.ModuleDict, images: Tensor) -> Tensor:
    return F.normalize(model["projector"](model["backbone"](images)), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = data.load("digits")
    train = digits.train_images.float() / 255
    gallery, test = (view(train), digits.train_labels), (view(digits.test_images.float() / 255), digits.test_labels)
    online = network()
    momentum = copy.deepcopy(online)
    initialize_momentum_params(online, momentum)
    updater = MomentumUpdater(0.99, 1.0)
    queue, place = F.normalize(torch.randn(2, DIM, QUEUE), dim=1), 0
    optimizer = torch.optim.AdamW(online.parameters(), lr=2e-3)

    print(f"kNN accuracy before training  {accuracy(online['backbone'], gallery, test):.3f}")
    for step in range(options.steps):
        images = train[torch.randint(len(train), (BATCH,))]
        views = view(images), view(images)
        query1, query2 = (embed(online, x) for x in views)
        with torch.no_grad():
            key1, key2 = (embed(momentum, x) for x in views)
        old = queue.clone()
        loss = (mocov2plus_loss_func(query1, key2, old[1], 0.2) + mocov2plus_loss_func(query2, key1, old[0], 0.2)) / 2
        queue[:, :, place : place + BATCH] = torch.stack([key1.T, key2.T])
        place = (place + BATCH) % QUEUE
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updater.update(online, momentum)
        updater.update_tau(step, options.steps)
        if step % 50 == 49 or step + 1 == options.steps:
            print(f"step {step + 1:4}  loss {loss.item():.3f}  tau {updater.cur_tau:.4f}", flush=True)
    print(f"kNN accuracy after training   {accuracy(online['backbone'], gallery, test):.3f}")


if __name__ == "__main__":
    main()
