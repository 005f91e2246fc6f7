"""The optimiser of a recipe, and its learning rate at each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..recipes import Recipe


def optimizer_of(method: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Makes the recipe's optimiser for the parameters that are trained: SGD, AdamW, or LARS (You et al. 2017) of timm.

    Without recipe.decay_all, biases and the parameters of norms are neither decayed nor scaled by LARS, as in SimCLR's
    code.

    Args:
        method: Its parameters with requires_grad are trained.
        recipe: optimizer, scaled_learning_rate, optimizer_momentum, weight_decay, decay_all and lars_trust.

    Raises:
        ImportError: for LARS where timm is not installed.
    """
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if recipe.decay_all or parameter.dim() > 1]
    others = [parameter for parameter in trained if not recipe.decay_all and parameter.dim() <= 1]
    rate, decay, momentum = recipe.scaled_learning_rate, recipe.weight_decay, recipe.optimizer_momentum
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=decay)
    from timm.optim.lars import Lars

    groups[0]["always_adapt"] = True  # timm's Lars does not scale a group without decay otherwise
    return Lars(groups, lr=rate, momentum=momentum, weight_decay=decay, trust_coeff=recipe.lars_trust)


def schedule_of(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LambdaLR:
    """Makes the schedule of the learning rate, to be stepped after every step of the optimiser.

    Args:
        optimizer: Its rates are the largest ones.
        recipe: schedule, schedule_by, milestones, warm_up_epochs and epochs.
        steps: Steps of the optimiser in an epoch.
    """

    def factor(step: int) -> float:
        epoch = step / steps if recipe.schedule_by == "step" else float(step // steps)
        warm_up = min(recipe.warm_up_epochs, recipe.epochs / 2)  # a short run still reaches its full rate
        if epoch < warm_up:
            # The rate is that at the end of the step (or epoch), so that the first step already moves the weights.
            return min(1.0, (epoch + (1 / steps if recipe.schedule_by == "step" else 1.0)) / warm_up)
        if recipe.schedule == "step":
            return 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - warm_up) / (recipe.epochs - warm_up))))

    return LambdaLR(optimizer, factor)
