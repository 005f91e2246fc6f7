"""A checkpoint's encoder as a file for other programs: torchvision, timm, safetensors, ONNX, facebookresearch/moco."""

from __future__ import annotations

import importlib
import io
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import files
from ..data.datasets import NORMALIZATION
from ..models import encoders
from ..models.moco_checkpoint import own_storage, resnet_name, to_moco

Format = Literal["torchvision", "timm", "safetensors", "onnx", "moco"]
Contents = Mapping[str, Any]  # of a checkpoint, as checkpoint.load returns them
LARGEST_ONNX = 2**31 - 1  # bytes of one protobuf message


def encoder_of(contents: Contents) -> nn.Module:
    """Makes the encoder of a checkpoint, in eval mode: (N, channels, S, S) to (N, features).

    The weights keep their dtype, and torch's global random state stays as it is.

    Args:
        contents: Of a checkpoint; its recipe, channels, image_size and model are used.

    Raises:
        ValueError: where the weights are not those of the recipe's encoder.

    Example:
        encoder = encoder_of(checkpoint.load("runs/simclr-small-digits/best.pt"))
    """
    recipe = contents["recipe"]
    with torch.random.fork_rng(devices=[]):
        encoder, _ = encoders.create(recipe.encoder, contents["channels"], recipe.stem, contents["image_size"])
    state = {
        name.removeprefix("encoder."): own_storage(tensor)
        for name, tensor in contents["model"].items()
        if name.startswith("encoder.")
    }
    try:
        encoder.load_state_dict(state, assign=True)  # copied weights would take the new encoder's dtype
    except RuntimeError as error:  # its message has a line for every weight that does not fit
        raise ValueError(f"model: {' '.join(str(error).split())}") from error
    return encoder.eval()


def torchvision_state(contents: Contents) -> dict[str, Tensor]:
    """Returns the encoder's state dict for torchvision's ResNet after `model.fc = nn.Identity()`, for strict loading.

    Raises:
        ValueError: for an encoder that torchvision's class cannot hold; the message names the field and says why.
    """
    resnet_name(contents["recipe"], contents["channels"])
    return _state(contents)


def timm_state(contents: Contents) -> dict[str, Tensor]:
    """Returns the encoder's state dict for the model of `timm_model`, for strict loading.

    Raises:
        ValueError: for an encoder that timm's class cannot hold; the message names the field and says why.
    """
    timm_model(contents)
    return _state(contents)


def timm_model(contents: Contents) -> tuple[str, dict[str, int]]:
    """Returns the name and the options with which timm.create_model makes the encoder; a ResNet is also timm's.

    Raises:
        ValueError: as `timm_state`.
    """
    recipe, channels = contents["recipe"], contents["channels"]
    if recipe.stem != "imagenet":
        raise ValueError(
            f"stem: timm's {recipe.encoder.removeprefix('timm/')} has none of a 3x3 convolution without pooling as "
            f"the {recipe.stem} stem; the format safetensors takes any"
        )
    # torchvision's ResNets take 3 channels, timm's any number, so the check of the channels is left out here.
    encoder = recipe.encoder if recipe.encoder.startswith("timm/") else resnet_name(recipe, channels=3)
    return encoders.timm_options(encoder, channels, contents["image_size"])


def metadata(contents: Contents) -> dict[str, str]:
    """Describes the encoder for those who load it, as strings: numbers in decimal, lists and truth values as JSON.

    Returns:
        ssl_fast (the version), recipe, epoch, encoder, stem, channels, image_size, normalize_images, and if that is
        true the mean and std of each channel, where white is 1.
    """
    from ...version import __version__

    recipe = contents["recipe"]
    described: dict[str, Any] = {"ssl_fast": __version__, "recipe": contents["recipe_name"]}
    described |= {"epoch": contents["epoch"], "encoder": recipe.encoder, "stem": recipe.stem}
    described |= {"channels": contents["channels"], "image_size": contents["image_size"]}
    described |= {"normalize_images": json.dumps(recipe.normalize_images)}
    if recipe.normalize_images:
        name = contents["data"].partition(":")[0]
        mean, std = NORMALIZATION["imagenet" if name == "imagefolder" else name]
        described |= {"mean": json.dumps(mean), "std": json.dumps(std)}
    return {name: str(value) for name, value in described.items()}


def _state(contents: Contents) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in encoder_of(contents).state_dict().items()}


def _saved(tensors: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _safetensors(contents: Contents) -> bytes:
    _require("safetensors", "safetensors")
    from safetensors.torch import save

    # Loaders of other libraries look for the entry format = pt.
    return save(_state(contents), metadata={"format": "pt", **metadata(contents)})


def _onnx(contents: Contents) -> bytes:
    _require("onnx", "onnx", "onnxscript")
    import onnx

    encoder = encoder_of(contents)
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    if size > LARGEST_ONNX:
        raise ValueError(f"encoder: the format onnx holds at most {LARGEST_ONNX} bytes of weights, got {size}")
    side = contents["image_size"]
    # Two images, since torch.export takes a batch of one for a constant.
    images = torch.zeros(2, contents["channels"], side, side, dtype=next(encoder.parameters()).dtype)
    program = torch.onnx.export(
        encoder,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # it is None only without dynamo=True
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(contents))
    return model.SerializeToString()


WRITERS: dict[str, Callable[[Contents], bytes]] = {
    "torchvision": lambda contents: _saved(torchvision_state(contents)),
    "timm": lambda contents: _saved(timm_state(contents)),
    "safetensors": _safetensors,
    "onnx": _onnx,
    "moco": lambda contents: _saved(to_moco(contents)),
}


def _require(format: str, *packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            # The command answers a ModuleNotFoundError with the trainer's extra, which would be the wrong one.
            raise ImportError(f"--format {format} needs {package}: pip install 'ssl-fast[export]'") from error


def export(contents: Contents, format: Format, output: str | Path) -> None:
    """Writes the encoder of a checkpoint in a format of other programs, whole or not at all.

    Args:
        contents: Of a checkpoint.
        format: "torchvision" and "timm" are state dicts, to be loaded strictly. "safetensors" takes any encoder and
            adds `metadata`. "onnx" is a graph from images (N, channels, S, S) to features (N, features) for any N, with
            the same metadata. "moco" is the whole run as facebookresearch/moco saves it.
        output: The file to write.

    Raises:
        ValueError: for an encoder that the format cannot hold.
        ImportError: where the packages of the format are not installed.
    """
    if format not in WRITERS:
        raise ValueError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    if Path(output).is_dir():
        raise ValueError(f"output: expected a file or a new name, got the folder {output}")
    written = WRITERS[format](contents)  # what fails here leaves no folder behind
    with files.replacing(output) as file:
        file.write(written)


def how_to_load(contents: Contents, format: Format, output: Path) -> str:
    """Returns the lines of Python, or for moco the command, that read what `export` wrote."""
    recipe, quoted = contents["recipe"], repr(str(output))
    if format == "torchvision":
        name = resnet_name(recipe, contents["channels"])
        made = f"model = torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()"
        return f"{made}\nmodel.load_state_dict(torch.load({quoted}))"
    if format == "timm":
        name, options = timm_model(contents)
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"model = timm.create_model({name!r}, {given})\nmodel.load_state_dict(torch.load({quoted}))"
    if format == "safetensors":
        return f"state = safetensors.torch.load_file({quoted})"
    if format == "onnx":
        return f"(features,) = onnxruntime.InferenceSession({quoted}).run(None, {{'images': images}})"
    arch = resnet_name(recipe, contents["channels"])
    mlp = " --mlp" if recipe.head_layers == 2 else ""
    return (
        f"python main_moco.py --arch {arch}{mlp} --moco-dim {recipe.projection_dim} --moco-k {recipe.queue_size} "
        f"--moco-m {recipe.momentum} --moco-t {recipe.temperature} --resume {shlex.quote(str(output))} ..."
    )
