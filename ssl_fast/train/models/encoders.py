"""Encoders by name (small ones of our own, those of torchvision and timm), and the MLPs behind them."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import nn
from torchvision import models

RESNETS: tuple[str, ...] = tuple(models.list_models(module=models, include=["resne*", "wide_resne*"]))


class Encoder(nn.Sequential):
    """Five 3x3 convolutions with batch norm and ReLU, then the mean over the image: (N, channels, S, S) to (N, width).

    Args:
        channels: Of the images.
        width: Features, a multiple of 4.
    """

    def __init__(self, channels: int, width: int = 128):
        layers: list[nn.Module] = []
        before = channels
        for after, stride in ((width // 4, 2), (width // 2, 1), (width // 2, 2), (width, 1), (width, 1)):
            layers += [
                nn.Conv2d(
                    before, after, 3, stride=stride, padding=1, bias=False
                ),  # the batch norm behind it adds the bias
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def create(name: str, channels: int, stem: Literal["imagenet", "cifar"], image_size: int) -> tuple[nn.Module, int]:
    """Creates an encoder with fresh weights, (N, channels, S, S) float32 to the features after pooling (N, features).

    The names in its state dict are the library's, without the classifier.

    Args:
        name: small-WIDTH, a ResNet of torchvision (resnet18, ..., wide_resnet50_2), or timm/NAME[,KEY=NUMBER...] with
            options of the model, such as timm/vit_small_patch16_224,num_heads=12.
        channels: Of the images.
        stem: Of a ResNet: "imagenet" is its own first layers, "cifar" a 3x3 convolution without pooling.
        image_size: The side S in pixels, which a ViT is made for.

    Returns:
        The encoder and the number of its features.

    Raises:
        ValueError: for another name, or a stem or width that the encoder cannot have.
        ImportError: for timm/NAME where timm is not installed.

    Example:
        >>> encoder, features = create("small-128", channels=1, stem="imagenet", image_size=24)
        >>> encoder(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 128])
    """
    width = re.fullmatch(r"small-(\d+)", name)
    if stem != "imagenet" and "resnet" not in name:
        raise ValueError(f"stem: expected imagenet, {stem} is of a ResNet, got the encoder {name}")
    if width:
        features = int(width[1])
        if features < 4 or features % 4:
            raise ValueError(f"encoder: expected small-WIDTH of a multiple of 4 from 4, got {name!r}")
        return Encoder(channels, features), features
    if name.startswith("timm/"):
        return _timm(name, channels, stem, image_size)
    return _torchvision_resnet(name, channels, stem)


def _torchvision_resnet(name: str, channels: int, stem: str) -> tuple[nn.Module, int]:
    if name not in RESNETS:
        raise ValueError(f"encoder: expected small-WIDTH, timm/NAME or one of {', '.join(RESNETS)}, got {name!r}")
    resnet: Any = models.get_model(name, weights=None)
    features: int = resnet.fc.in_features
    resnet.fc = nn.Identity()
    _adapt_stem(resnet, channels, stem)
    return resnet, features


def _adapt_stem(resnet: Any, channels: int, stem: str) -> None:
    conv = resnet.conv1
    if stem == "cifar":
        resnet.conv1 = nn.Conv2d(channels, conv.out_channels, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    elif channels != conv.in_channels:
        resnet.conv1 = nn.Conv2d(channels, conv.out_channels, 7, stride=2, padding=3, bias=False)
    else:
        return
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")


def timm_options(encoder: str, channels: int, image_size: int) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options with which timm.create_model makes timm/NAME[,KEY=NUMBER...].

    The options leave out the classifier and set the channels, and a ViT's image size.

    Raises:
        ValueError: for an option of another form than KEY=NUMBER.
    """
    name, *assignments = encoder.removeprefix("timm/").split(",")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    if name.startswith("vit_"):
        options["img_size"] = image_size
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if not (key.isidentifier() and value.isdecimal()):
            raise ValueError(f"encoder: expected timm/NAME,KEY=NUMBER, got {assignment!r}")
        options[key] = int(value)
    return name, options


def _timm(encoder: str, channels: int, stem: str, image_size: int) -> tuple[nn.Module, int]:
    import timm

    name, options = timm_options(encoder, channels, image_size)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "none alike; see timm.list_models()"
        raise ValueError(f"encoder: timm has no model {name!r}; it has {close}")
    model: Any = timm.create_model(name, **options)
    if stem == "cifar":
        _adapt_stem(model, channels, stem)
    return model, model.num_features


def mlp(
    before: int,
    width: int,
    after: int,
    layers: int,
    batch_norm: Literal["none", "hidden", "all"] = "none",
) -> nn.Sequential:
    """Makes linear layers with ReLU between them, (N, before) to (N, after).

    Args:
        before: Features of the input.
        width: Features between the layers.
        after: Features of the output.
        layers: Number of linear layers; 0 returns the input as it is.
        batch_norm: "hidden" has batch norm behind all layers but the last, "all" also behind the last, there without
            scale and shift (Chen et al. 2021). With batch norm no layer has a bias.
    """
    parts: list[nn.Module] = []
    for number in range(1, layers + 1):
        last = number == layers
        normalised = batch_norm == "all" or (batch_norm == "hidden" and not last)
        size = after if last else width
        # In the code of SimCLR and MoCo v3 the last layer has no bias either, even where no batch norm follows it.
        parts.append(nn.Linear(before, size, bias=batch_norm == "none"))
        if normalised:
            parts.append(nn.BatchNorm1d(size, affine=not last))
        if not last:
            parts.append(nn.ReLU(inplace=True))
        before = size
    return nn.Sequential(*parts)


def initialize_as_moco_v3(encoder: Any, freeze_patch_projection: bool) -> None:
    """Initialises a ResNet or a ViT of timm in place as facebookresearch/moco-v3 does; other encoders stay as they are.

    The residual blocks of a ResNet begin as the identity. A ViT gets fixed sine-cosine positions.

    Args:
        encoder: Of `create`.
        freeze_patch_projection: Whether a ViT's first layer keeps its random weights, which makes the training stable
            (Chen et al. 2021, section 4.2).

    Raises:
        ValueError: for freeze_patch_projection without a ViT.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    for module in encoder.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    is_vit = hasattr(encoder, "patch_embed") and hasattr(encoder, "pos_embed")
    if freeze_patch_projection and not is_vit:
        raise ValueError(
            f"freeze_patch_projection: expected False without a ViT, got True for {type(encoder).__name__}"
        )
    if is_vit:
        _initialize_vit(encoder, freeze_patch_projection)


def _initialize_vit(vit: Any, freeze_patch_projection: bool) -> None:
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    vit.init_weights(mode="moco")
    projection = vit.patch_embed.proj
    bound = (6 / (projection.weight[0].numel() + vit.embed_dim)) ** 0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    positions = build_sincos2d_pos_embed(list(vit.patch_embed.grid_size), dim=vit.embed_dim)
    before = vit.pos_embed.shape[1] - len(positions)  # positions of the class token
    with torch.no_grad():
        vit.pos_embed.copy_(torch.cat([positions.new_zeros(before, vit.embed_dim), positions])[None])
    vit.pos_embed.requires_grad_(False)
    if freeze_patch_projection:
        projection.requires_grad_(False)
