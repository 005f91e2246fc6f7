"""Batch normalisation in groups: on one device what several devices do, each with its own part of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm(_BatchNorm):
    """`groups` parts of the batch, each normalised by its own statistics in training.

    (N, C, ...) with N a multiple of groups; part g holds the rows g, g + groups, ... The running statistics are the
    mean over the parts, each of which moves them as far as a whole batch would. State dict as of torch's BatchNorm.
    Of MoCo (He et al. 2020, section 3.3), where a key must not share statistics with its query.
    """

    def __init__(self, batch_norm: _BatchNorm, groups: int):
        # Made of another: its parameters and buffers are taken over, not copied.
        nn.Module.__init__(self)
        self.__dict__.update(batch_norm.__dict__)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        count, channels, *size = x.shape
        if count % self.groups:
            raise ValueError(f"x: expected a multiple of {self.groups} groups, got {tuple(x.shape)}")
        parts = x.reshape(count // self.groups, self.groups * channels, *size)
        mean = var = weight = bias = None
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            mean, var = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        if self.affine:
            weight, bias = self.weight.repeat(self.groups), self.bias.repeat(self.groups)
        y = F.batch_norm(parts, mean, var, weight, bias, True, self.momentum or 0.0, self.eps)
        if mean is not None and var is not None:
            self.running_mean.copy_(mean.view(self.groups, channels).mean(0))  # type: ignore[union-attr]
            self.running_var.copy_(var.view(self.groups, channels).mean(0))  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return y.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def in_groups(module: nn.Module, groups: int) -> nn.Module:
    """The module with all its batch norms in groups; 1 group: as it is."""
    if groups == 1:
        return module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return GroupedBatchNorm(module, groups)
    for name, child in module.named_children():
        setattr(module, name, in_groups(child, groups))
    return module


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training normalise as ever and leave their running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    buffers = [dict(part._buffers) for part in norms]
    # Copies take the movement. To track nothing would save other tensors than the first forward pass did.
    for part in norms:
        part._buffers.update({name: None if x is None else x.clone() for name, x in part._buffers.items()})
    try:
        yield
    finally:
        for part, own in zip(norms, buffers, strict=True):
            part._buffers.update(own)
