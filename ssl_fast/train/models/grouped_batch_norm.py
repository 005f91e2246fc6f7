"""Batch normalisation in groups: one device normalises parts of its batch separately, as several devices would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm(_BatchNorm):
    """Batch norm that in training normalises each of `groups` parts of the batch by the part's own statistics.

    Input and output are (N, C, ...), where N is a multiple of groups; part g holds the rows g, g + groups, ... Each
    part gives running statistics as torch's BatchNorm would have them, and their mean over the parts is kept. The state
    dict has the names of torch's BatchNorm. MoCo needs it on one device, since a key must not share batch statistics
    with its query (He et al. 2020, section 3.3).

    Args:
        batch_norm: The layer that is replaced; its parameters and buffers are taken over, not copied.
        groups: Number of parts.
    """

    def __init__(self, batch_norm: _BatchNorm, groups: int):
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
    """Replaces every BatchNorm1d and BatchNorm2d of a module, in place, by a GroupedBatchNorm.

    Args:
        module: Of any kind.
        groups: Parts of the batch; 1 changes nothing.

    Returns:
        The module, or what replaces it if it is a batch norm itself.
    """
    if groups == 1:
        return module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return GroupedBatchNorm(module, groups)
    for name, child in module.named_children():
        setattr(module, name, in_groups(child, groups))
    return module


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, the batch norms of a module normalise as ever, and their running statistics do not move."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    buffers = [dict(part._buffers) for part in norms]
    # The statistics of copies move instead. Switching track_running_stats off would make the second forward pass save
    # other tensors for the backward pass than the first, which torch's checkpointing refuses.
    for part in norms:
        part._buffers.update({name: None if x is None else x.clone() for name, x in part._buffers.items()})
    try:
        yield
    finally:
        for part, own in zip(norms, buffers, strict=True):
            part._buffers.update(own)
