"""What each method is trained with: a class a recipe, its numbers as published, their source beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from .. import checks
from . import view
from .view import View

LEAST = {
    "seed": 0,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "micro_batch": 0,
    "image_size": 0,
    "bn_groups": 1,
    "projection_dim": 1,
    "head_layers": 0,
    "head_width": 0,
    "predictor_layers": 0,
    "predictor_width": 1,
    "queue_size": 1,
    "noise": 0,
}
FROM_ZERO = ("learning_rate", "weight_decay", "warm_up_epochs", "clip_gradient", "lars_trust")
BatchNorms = Literal["none", "hidden", "all"]


@dataclass(frozen=True)
class Recipe:
    """What all methods need.

    batch_size: images a step, over all processes. accumulate: batches whose gradients are averaged for one step of
    the optimiser. micro_batch: the batch goes through the encoder in parts of so many images, with the batch's
    exact gradient (0: whole); batch normalisation then sees the parts.
    encoder: small-WIDTH, a ResNet of torchvision, or timm/NAME. stem: of a ResNet; cifar is a 3x3 convolution
    without pooling. image_size: side of the encoder's input, 0 the data's own. normalize_images: by mean and deviation.
    head_layers, head_width, head_batch_norm, projection_dim: the projection head: 0 layers is none, width 0 the
    features' own; batch norm after hidden or all layers.
    optimizer, learning_rate, learning_rate_scale: the rate is learning_rate, * batch / 256 (linear) or
    * sqrt(batch) (sqrt). decay_all: also biases and norms, which otherwise have no decay and no LARS.
    schedule: cosine to 0, or step: * 0.1 at the milestones (epochs). schedule_by: where the rate changes.
    warm_up_epochs: linear, from 0. clip_gradient: largest norm, 0 without limit.
    bn_groups: parts of the batch normalised apart, per process. sync_batch_norm: over all processes instead.
    """

    method: ClassVar[str]

    seed: int = 0
    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    micro_batch: int = 0
    encoder: str = "resnet50"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    image_size: int = 0
    normalize_images: bool = True
    head_layers: int = 2
    head_width: int = 0
    head_batch_norm: BatchNorms = "none"
    projection_dim: int = 128
    temperature: float = 0.1
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float = 0.03
    learning_rate_scale: Literal["none", "linear", "sqrt"] = "none"
    optimizer_momentum: float = 0.9
    lars_trust: float = 0.001
    weight_decay: float = 1e-4
    decay_all: bool = True
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "step"
    milestones: tuple[int, ...] = (120, 160)
    warm_up_epochs: float = 0.0
    clip_gradient: float = 0.0
    bn_groups: int = 1
    sync_batch_norm: bool = False
    view1: View = view.SIMCLR

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an image that a step needs."""
        return (self.view1,)

    @property
    def scaled_learning_rate(self) -> float:
        """The largest rate of the schedule."""
        batch = self.batch_size * self.accumulate
        return (
            self.learning_rate
            * {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[self.learning_rate_scale]
        )

    def check(self) -> None:
        """Raises ValueError or TypeError, naming the field, for a number that no run can have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if name in LEAST and value < LEAST[name]:
                raise ValueError(f"{name}: expected at least {LEAST[name]}, got {value}")
            if name in FROM_ZERO and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0, got {value}")
            if isinstance(value, View):
                value.check(name)
        if self.seed >= 2**63 - 1:  # torch's generators take no more
            raise ValueError(f"seed: expected less than 2^63 - 1, got {self.seed}")
        if not 0 <= self.optimizer_momentum < 1:
            raise ValueError(f"optimizer_momentum: expected a number from 0 to below 1, got {self.optimizer_momentum}")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones: expected rising epochs from 1, got {self.milestones}")
        if self.batch_size % self.bn_groups:
            raise ValueError(f"bn_groups: expected a divisor of the batch of {self.batch_size}, got {self.bn_groups}")
        if self.bn_groups > 1 and self.sync_batch_norm:
            raise ValueError("bn_groups: expected 1 with sync_batch_norm, which normalises all together")
        if self.micro_batch and self.micro_batch % self.bn_groups:
            raise ValueError(
                f"micro_batch: expected a multiple of the {self.bn_groups} bn_groups, got {self.micro_batch}"
            )
        checks.temperature(self.temperature)


@dataclass(frozen=True)
class TwoViews(Recipe):
    view2: View = view.SIMCLR

    @property
    def views(self) -> tuple[View, ...]:
        return self.view1, self.view2


@dataclass(frozen=True)
class SimCLR(TwoViews):
    """SimCLR on ImageNet (Chen et al. 2020, section 2 and appendix B): 69.3 % linear after 1000 epochs.

    google-research/simclr, run.py: about 64.5 % after 100 epochs; images in [0, 1], not normalised; a head that ends
    in a batch norm, there with a scale. The decay is the paper's.
    """

    method: ClassVar[str] = "simclr"

    epochs: int = 1000
    batch_size: int = 4096
    image_size: int = 224
    normalize_images: bool = False
    head_batch_norm: BatchNorms = "all"
    optimizer: Literal["sgd", "lars", "adamw"] = "lars"
    learning_rate: float = 0.3
    learning_rate_scale: Literal["none", "linear", "sqrt"] = "linear"
    weight_decay: float = 1e-6
    decay_all: bool = False
    warm_up_epochs: float = 10.0
    sync_batch_norm: bool = True


@dataclass(frozen=True)
class SimCLRCIFAR(SimCLR):
    """SimCLR on CIFAR-10 (google-research/simclr, README command): about 91 % linear.

    With a ResNet-50: 94.0 % (appendix B.9).
    """

    batch_size: int = 512
    encoder: str = "resnet18"
    stem: Literal["imagenet", "cifar"] = "cifar"
    image_size: int = 0
    temperature: float = 0.5
    learning_rate: float = 1.0
    weight_decay: float = 1e-4
    view1: View = view.CIFAR
    view2: View = view.CIFAR


@dataclass(frozen=True)
class MoCoV1(TwoViews):
    """MoCo v1 on ImageNet (He et al. 2020; facebookresearch/moco main_moco.py): 60.6 % linear.

    momentum: of the key encoder. queue_size: negatives. queue_dtype: of the stored keys.
    bn_groups: the eight GPUs of the original, over which its keys are shuffled; with eight processes 1 is the same.
    """

    method: ClassVar[str] = "moco"

    epochs: int = 200
    image_size: int = 224
    head_layers: int = 1
    temperature: float = 0.07
    schedule: Literal["cosine", "step"] = "step"
    schedule_by: Literal["step", "epoch"] = "epoch"
    bn_groups: int = 8
    view1: View = view.MOCO_V1
    view2: View = view.MOCO_V1
    momentum: float = 0.999
    queue_size: int = 65536
    queue_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def check(self) -> None:
        super().check()
        checks.momentum(self.momentum)


@dataclass(frozen=True)
class MoCoV2(MoCoV1):
    """MoCo v2 on ImageNet (Chen et al. 2020; main_moco.py --mlp --moco-t 0.2 --aug-plus --cos): 67.5 % linear.

    After 800 epochs: 71.1 %.
    """

    head_layers: int = 2
    temperature: float = 0.2
    schedule: Literal["cosine", "step"] = "cosine"
    view1: View = view.MOCO_V2
    view2: View = view.MOCO_V2


@dataclass(frozen=True)
class MoCoV3(TwoViews):
    """MoCo v3 with a ResNet-50 on ImageNet (Chen et al. 2021; facebookresearch/moco-v3 CONFIG.md): 68.9 % linear.

    100 epochs. 300 epochs: learning_rate 0.3 (72.8 %). 1000: also weight_decay 1.5e-6 and momentum 0.996 (74.6 %).
    momentum: of the key encoder at the start, rises to 1 along half a cosine. predictor_*: the MLP behind the head.
    freeze_patch_projection: a ViT's first layer stays as initialised (section 4.2 of the paper).
    """

    method: ClassVar[str] = "moco-v3"

    batch_size: int = 4096
    image_size: int = 224
    head_width: int = 4096
    head_batch_norm: BatchNorms = "all"
    projection_dim: int = 256
    predictor_layers: int = 2
    predictor_width: int = 4096
    predictor_batch_norm: BatchNorms = "hidden"
    temperature: float = 1.0
    optimizer: Literal["sgd", "lars", "adamw"] = "lars"
    learning_rate: float = 0.6
    learning_rate_scale: Literal["none", "linear", "sqrt"] = "linear"
    weight_decay: float = 1e-6
    decay_all: bool = False
    warm_up_epochs: float = 10.0
    sync_batch_norm: bool = True
    view1: View = view.MOCO_V3_FIRST
    view2: View = view.MOCO_V3_SECOND
    momentum: float = 0.99
    freeze_patch_projection: bool = False

    def check(self) -> None:
        super().check()
        checks.momentum(self.momentum)


@dataclass(frozen=True)
class MoCoV3ViT(MoCoV3):
    """MoCo v3 with a ViT-S/16 of 12 heads on ImageNet (CONFIG.md): 73.2 % linear; vit_base_patch16_224: 76.7 %."""

    epochs: int = 300
    encoder: str = "timm/vit_small_patch16_224,num_heads=12"
    head_layers: int = 3
    predictor_batch_norm: BatchNorms = "all"
    temperature: float = 0.2
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float = 1.5e-4
    weight_decay: float = 0.1
    decay_all: bool = True
    warm_up_epochs: float = 40.0
    view1: View = view.MOCO_V3_VIT_FIRST
    view2: View = view.MOCO_V3_VIT_SECOND
    freeze_patch_projection: bool = True


@dataclass(frozen=True)
class InstDisc(Recipe):
    """Instance discrimination with a memory bank (Wu et al. 2018; zhirongw/lemniscate.pytorch main.py, --nce-k 4096).

    bank_momentum: share of the old row that stays. noise: sampled images a row; 0 is the full softmax.
    """

    method: ClassVar[str] = "instdisc"

    epochs: int = 200
    encoder: str = "resnet18"
    image_size: int = 224
    head_layers: int = 1
    temperature: float = 0.07
    schedule: Literal["cosine", "step"] = "step"
    schedule_by: Literal["step", "epoch"] = "epoch"
    view1: View = view.MOCO_V1
    bank_momentum: float = 0.5
    noise: int = 4096

    def check(self) -> None:
        super().check()
        if not 0 <= self.bank_momentum <= 1:
            raise ValueError(f"bank_momentum: expected a number from 0 to 1, got {self.bank_momentum}")


# Ours: the same methods at a size for the digits and Fashion-MNIST on a CPU, in minutes.
_SMALL: dict[str, Any] = {
    "encoder": "small-128",
    "image_size": 0,
    "normalize_images": False,
    "head_batch_norm": "none",
    "temperature": 0.1,
    # The published optimisers suit 100 and more epochs of 5000 steps, not some hundred steps.
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
    "view1": view.SMALL,
}
# A queue longer than the data holds every image again, as a negative of itself; 0.999 averages over 1000 steps,
# more than such a run has. More epochs than SimCLR's, each of half as many encoded views with a gradient.
_SMALL_MOCO: dict[str, Any] = {**_SMALL, "view2": view.SMALL, "epochs": 160, "momentum": 0.99, "queue_size": 512}

RECIPES: dict[str, Recipe] = {
    "simclr": SimCLR(),
    "simclr-cifar": SimCLRCIFAR(),
    "moco-v1": MoCoV1(),
    "moco-v2": MoCoV2(),
    "moco-v3": MoCoV3(),
    "moco-v3-vit": MoCoV3ViT(),
    "instdisc": InstDisc(),
    "simclr-small": SimCLR(**{**_SMALL, "view2": view.SMALL, "epochs": 100, "batch_size": 256}),
    "moco-v1-small": MoCoV1(**_SMALL_MOCO),
    "moco-v2-small": MoCoV2(**_SMALL_MOCO),
    "moco-v3-small": MoCoV3(
        **{
            **_SMALL,
            "view2": view.SMALL,
            "batch_size": 256,
            "temperature": 0.2,
            "head_width": 256,
            "head_batch_norm": "all",
        },
        projection_dim=128,
        predictor_width=256,
    ),
    "instdisc-small": InstDisc(**{**_SMALL, "epochs": 160, "noise": 0}),
}
