"""A small convolutional encoder and the projection head."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Sequential):
    """Five 3x3 convolutions with BatchNorm and ReLU, then the mean over the image.

    (N, channels, S, S) float to (N, feature_dim); feature_dim = width, a multiple of 4.
    """

    def __init__(self, channels: int, width: int = 128):
        layers = []
        before = channels
        for after, stride in ((width // 4, 2), (width // 2, 1), (width // 2, 2), (width, 1), (width, 1)):
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),  # BatchNorm has the bias
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_dim = width


class ProjectionHead(nn.Sequential):
    """The two-layer MLP in front of the loss: (N, feature_dim) to (N, dim), not normalised."""

    def __init__(self, feature_dim: int, dim: int):
        super().__init__(nn.Linear(feature_dim, feature_dim), nn.ReLU(inplace=True), nn.Linear(feature_dim, dim))
