"""Checkpoints of facebookresearch/moco: ours converted to theirs and theirs to ours.

Their files hold `epoch`, `arch`, `state_dict` and `optimizer`. The tensors are those of moco/builder.py within
DistributedDataParallel: `module.encoder_q.*` and `module.encoder_k.*`, each a ResNet of torchvision whose `fc` is the
projection head, `module.queue` (D, K) and `module.queue_ptr` (1,).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...memory.queue import NegativeQueue
from .. import files
from ..recipes import RECIPES, MoCoV1Recipe, Recipe
from .encoders import RESNETS, create, mlp

RECIPE_OF_LAYERS = {1: "moco-v1", 2: "moco-v2"}  # by the number of layers of the projection head
QUEUE_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LISTED = 12  # the most tensors that an error names, since a ResNet has hundreds


class Original(nn.Module):
    """The tensors of MoCo in moco/builder.py under their names, on the meta device: names and shapes without values.

    Args:
        arch: A name of RESNETS.
        dim: Columns of the keys.
        size: Keys in the queue.
        layers: Linear layers of the head, 1 or 2.
    """

    def __init__(self, arch: str, dim: int, size: int, layers: int):
        super().__init__()
        with torch.device("meta"):
            for name in ("encoder_q", "encoder_k"):
                encoder, features = create(arch, channels=3, stem="imagenet", image_size=224)
                head = mlp(features, features, dim, layers)
                encoder.fc = head if layers == 2 else head[0]
                self.add_module(name, encoder)
            self.register_buffer("queue", torch.empty(dim, size))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))


def resnet_name(recipe: Recipe, channels: int) -> str:
    """Returns the name of torchvision's ResNet that has the same weights as the recipe's encoder.

    A ResNet of timm has the same weights as torchvision's of the same name.

    Raises:
        ValueError: for an encoder that torchvision's class cannot hold; the message names the field and says why.
    """
    name = recipe.encoder.removeprefix("timm/")
    if name not in RESNETS:
        raise ValueError(
            f"encoder: {recipe.encoder} is none of torchvision's {', '.join(RESNETS)}; the format safetensors takes any"
        )
    if recipe.stem != "imagenet":
        raise ValueError(
            f"stem: torchvision's {name} begins with a 7x7 convolution and pooling, this one with the {recipe.stem} "
            "stem's 3x3 convolution; the format safetensors takes any"
        )
    if channels != 3:
        raise ValueError(f"channels: torchvision's {name} takes 3, this one {channels}; the format timm takes any")
    return name


def to_moco(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint of MoCo v1 or v2 to what `main_moco.py --resume` reads.

    The tensors keep their values bit for bit; the queue, (K, D) here, becomes (D, K). The optimiser's state is that of
    a new SGD with the recipe's numbers: the momentum buffers are left out.

    Args:
        contents: Of a checkpoint; its recipe, channels, model and epoch are used.

    Returns:
        epoch, arch, state_dict and optimizer.

    Raises:
        ValueError: for a run that facebookresearch/moco has no model for, and for tensors that do not fit the recipe.
            It has models of MoCo v1 and v2 with an encoder of `resnet_name`, whose head has one layer, or two of the
            features' width, without batch norm.
    """
    recipe = contents["recipe"]
    if not isinstance(recipe, MoCoV1Recipe):
        raise ValueError(f"recipe: the format moco is of moco-v1 and moco-v2, got {recipe.method}")
    arch = resnet_name(recipe, contents["channels"])
    if recipe.head_layers not in RECIPE_OF_LAYERS or recipe.head_batch_norm != "none":
        raise ValueError(
            "head_layers: the format moco is of a head of 1 or 2 layers without batch norm, "
            f"got {recipe.head_layers} with head_batch_norm {recipe.head_batch_norm}"
        )
    original = Original(arch, recipe.projection_dim, recipe.queue_size, recipe.head_layers)
    features = original.get_parameter(f"encoder_q.fc.{'0.' * (recipe.head_layers - 1)}weight").shape[1]
    if recipe.head_layers == 2 and recipe.head_width not in (0, features):
        raise ValueError(f"head_width: the format moco is of the features' {features}, got {recipe.head_width}")
    state = _renamed(contents["model"], _prefixes(recipe.head_layers))
    if "queue" in state:
        state["queue"] = state["queue"].T
    _check_tensors(state, original, "model")
    sgd = torch.optim.SGD(
        original.parameters(),
        recipe.scaled_learning_rate,
        momentum=recipe.optimizer_momentum,
        weight_decay=recipe.weight_decay,
    )
    return {
        "epoch": contents["epoch"],
        "arch": arch,
        "state_dict": {f"module.{name}": own_storage(tensor) for name, tensor in state.items()},
        "optimizer": sgd.state_dict(),
    }


def from_moco(moco: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint of facebookresearch/moco to the contents of one of ours.

    A head of one layer makes it moco-v1, a head of two moco-v2. The recipe's encoder, projection_dim, queue_size and
    queue_dtype are those of the file; what a file does not hold, such as the temperature, is as published. Without a
    key encoder in the file the query encoder is copied, and without a queue a new run's random queue is taken, each
    with a warning.

    Args:
        moco: epoch, arch and state_dict, its names with or without `module.`; the optimizer is not read.

    Returns:
        recipe_name, recipe, model (a state dict), epoch, channels and image_size.

    Raises:
        ValueError: for tensors that are missing, unknown or of another shape or kind, which the message lists.
    """
    if not moco.keys() >= {"epoch", "arch", "state_dict"} or not isinstance(moco["state_dict"], Mapping):
        raise ValueError(f"moco: expected epoch, arch and state_dict, got {', '.join(map(str, moco)) or 'nothing'}")
    arch, epoch = moco["arch"], moco["epoch"]
    if arch not in RESNETS:
        raise ValueError(f"arch: expected one of {', '.join(RESNETS)}, got {arch!r}")
    if not isinstance(epoch, int) or epoch < 0:
        raise ValueError(f"epoch: expected the number of complete epochs, got {epoch!r}")
    state = dict(moco["state_dict"])
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layers, dim = _head(state)
    recipe: Any = RECIPES[RECIPE_OF_LAYERS[layers]]
    size = _complete(state, recipe, dim)
    _check_tensors(state, Original(arch, dim, size, layers), "state_dict")
    _check_queue(state["queue"], state["queue_ptr"])
    state["queue"] = state["queue"].T
    queue_dtype = QUEUE_DTYPES[state["queue"].dtype]
    recipe = dataclasses.replace(recipe, encoder=arch, projection_dim=dim, queue_size=size, queue_dtype=queue_dtype)
    theirs_to_ours = [(theirs, ours) for ours, theirs in _prefixes(layers)]
    return {
        "recipe_name": RECIPE_OF_LAYERS[layers],
        "recipe": recipe,
        "model": {name: own_storage(tensor) for name, tensor in _renamed(state, theirs_to_ours).items()},
        "epoch": epoch,
        "channels": 3,
        "image_size": recipe.image_size,
    }


def import_moco(path: str | Path) -> dict[str, Any]:
    """Reads a file for `from_moco`, with its tensors on the CPU, without running any code that the file may hold.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no checkpoint of facebookresearch/moco.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    moco = files.read_tensors(path)
    if not isinstance(moco, Mapping):
        raise ValueError(f"{path}: expected a checkpoint of facebookresearch/moco, got {type(moco).__name__}")
    try:
        return from_moco(moco)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def own_storage(tensor: Tensor) -> Tensor:
    """Returns a contiguous copy, since torch.save writes the whole storage of a view."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _prefixes(layers: int) -> list[tuple[str, str]]:
    """Returns pairs of beginnings of names, ours and theirs; the first pair that fits a name renames it."""
    first = "0." if layers == 1 else ""  # their head of one layer is the layer itself, ours a sequence of one
    return [
        (f"head.{first}", "encoder_q.fc."),
        (f"key_head.{first}", "encoder_k.fc."),
        ("encoder.", "encoder_q."),
        ("key_encoder.", "encoder_k."),
        ("queue.", ""),
    ]


def _renamed(state: Mapping[str, Any], prefixes: list[tuple[str, str]]) -> dict[str, Any]:
    def renamed(name: str) -> str:
        for before, after in prefixes:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


def _head(state: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the number of layers of the head and the columns of its output."""
    for layers, name in ((1, "encoder_q.fc.weight"), (2, "encoder_q.fc.2.weight")):
        weight = state.get(name)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            return layers, weight.shape[0]
    raise ValueError(
        "state_dict: expected a matrix encoder_q.fc.weight (MoCo v1) or encoder_q.fc.2.weight (v2), "
        f"got {_list(sorted(map(str, state)))}"
    )


def _complete(state: dict[str, Any], recipe: MoCoV1Recipe, dim: int) -> int:
    """Adds a key encoder and a queue, with a warning, where `state` has none; returns the keys in the queue."""
    if not any(name.startswith("encoder_k.") for name in state):
        warnings.warn("encoder_k: not in the file, begins as a copy of encoder_q", stacklevel=3)
        queries = {name.removeprefix("encoder_q."): x for name, x in state.items() if name.startswith("encoder_q.")}
        state.update({f"encoder_k.{name}": tensor for name, tensor in queries.items()})
    if "queue" not in state and "queue_ptr" not in state:
        warnings.warn(f"queue: not in the file, begins with {recipe.queue_size} random rows", stacklevel=3)
        queue = NegativeQueue(recipe.queue_size, dim, seed=recipe.seed)
        state.update({"queue": queue.queue.T, "queue_ptr": queue.queue_ptr})
    stored = state.get("queue")
    if not isinstance(stored, Tensor) or stored.ndim != 2:
        came = tuple(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
        raise ValueError(f"state_dict: expected a matrix queue ({dim}, K), got {came}")
    return stored.shape[1]


def _check_queue(queue: Tensor, queue_ptr: Tensor) -> None:
    if queue.dtype not in QUEUE_DTYPES:
        raise ValueError(f"queue: expected float32, bfloat16 or float16, got {queue.dtype}")
    if not 0 <= int(queue_ptr) < queue.shape[1]:
        raise ValueError(f"queue_ptr: expected a column from 0 to {queue.shape[1] - 1}, got {int(queue_ptr)}")


def _check_tensors(state: Mapping[str, Any], original: nn.Module, argument: str) -> None:
    """Raises ValueError, with a list of the tensors, where names, shapes or kinds of dtype differ from `original`'s."""
    expected = original.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        came, meant = state[name], expected[name]
        if not isinstance(came, Tensor):
            problems.append(f"{name} is no tensor but {type(came).__name__}")
        elif came.shape != meant.shape:
            problems.append(f"{name} is {tuple(came.shape)} instead of {tuple(meant.shape)}")
        elif came.is_floating_point() != meant.is_floating_point():
            problems.append(f"{name} is {came.dtype} instead of {meant.dtype}")
    if problems:
        raise ValueError(f"{argument}: expected the tensors of facebookresearch/moco; {_list(problems)}")


def _list(problems: Iterable[str]) -> str:
    listed = list(problems)
    rest = len(listed) - LISTED
    return ", ".join(listed[:LISTED]) + (f" and {rest} more" if rest > 0 else "") or "none"
