"""Recipes of our own for small greyscale images: each method trains on digits or Fashion-MNIST on a CPU, in minutes.

These numbers are not published anywhere. The published recipes are in the other files.
"""

from __future__ import annotations

from typing import Any

from .base import Recipe
from .instance_discrimination import InstanceDiscriminationRecipe
from .moco_v1 import MoCoV1Recipe
from .moco_v2 import MoCoV2Recipe
from .moco_v3 import MoCoV3Recipe
from .simclr import SimCLRRecipe
from .view import View

# Colour and crops say little of a greyscale image of some 28 pixels. Its position, light and noise are varied instead.
VIEW = View(order=("affine", "jitter", "noise", "flip"), jitter=(0.4, 0.0, 0.0, 0.0), jitter_p=1.0)
_ALL: dict[str, Any] = {
    "encoder": "small-128",
    "image_size": 0,
    "normalize_images": False,
    "head_batch_norm": "none",
    "temperature": 0.1,
    # The published optimisers and rates are meant for 100 epochs of 5000 steps; these runs have 500 to 800 steps.
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "learning_rate_scale": "none",
    "weight_decay": 1e-4,
    "decay_all": False,
    "schedule": "cosine",
    "schedule_by": "step",
    "warm_up_epochs": 5.0,
    "sync_batch_norm": False,
    "bn_groups": 1,
    "view1": VIEW,
}
_TWO_VIEWS: dict[str, Any] = {**_ALL, "view2": VIEW}
# queue_size: with 1437 digits a queue of 65536 keys would hold every image many times, as a negative of itself.
# momentum: 0.999 averages the weights over 1000 steps, more than such a run has.
# epochs: MoCo's are 160, SimCLR's 100, since a step of MoCo encodes one view of an image with a gradient, not two.
_MOCO: dict[str, Any] = {**_TWO_VIEWS, "epochs": 160, "momentum": 0.99, "queue_size": 512}
_MOCO_V3: dict[str, Any] = {
    **_TWO_VIEWS,
    "batch_size": 256,
    "temperature": 0.2,
    "head_width": 256,
    "head_batch_norm": "all",
    "projection_dim": 128,
    "predictor_width": 256,
}

SMALL_RECIPES: dict[str, Recipe] = {
    "simclr-small": SimCLRRecipe(**{**_TWO_VIEWS, "epochs": 100, "batch_size": 256}),
    "moco-v1-small": MoCoV1Recipe(**_MOCO),
    "moco-v2-small": MoCoV2Recipe(**_MOCO),
    "moco-v3-small": MoCoV3Recipe(**_MOCO_V3),
    "instdisc-small": InstanceDiscriminationRecipe(**{**_ALL, "epochs": 160, "noise": 0}),
}
