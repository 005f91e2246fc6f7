"""The comparator of momentum updates: against the oracle, within the roundings that an update may make."""

import numpy as np
import torch

from . import oracle


def tolerance(target_dtype, source_dtype) -> float:
    """Two roundings of the arithmetic and one to the target, relative to the larger operand."""
    wide = torch.float64 if torch.float64 in (target_dtype, source_dtype) else torch.float32
    return 2 * torch.finfo(wide).eps + torch.finfo(target_dtype).eps


def assert_averaged(got, target, source, momentum):
    """got against the oracle's average of what target and source held before."""
    expected = oracle.ema(target.double().cpu().numpy(), source.double().cpu().numpy(), momentum)
    scale = np.maximum(np.abs(target.double().cpu().numpy()), np.abs(source.double().cpu().numpy()))
    allowed = tolerance(target.dtype, source.dtype) * scale + torch.finfo(target.dtype).tiny
    assert (np.abs(got.double().cpu().numpy() - expected) <= allowed).all()
