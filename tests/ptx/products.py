"""PyTorch's own float32 products on the CPU with operands rounded as tensor cores take them: eager code on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}


def to_tf32(x: Tensor) -> Tensor:
    """float32 to the nearest number with TF32's 10 bits after the point, as cvt.rna.tf32.f32 has it."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(x.isfinite(), ((bits + 0x1000) & ~0x1FFF).view(torch.float32), x)


def through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).float()


class Products(TorchDispatchMode):
    """Inside, the operands of float32 matrix products are rounded, in the backward pass too."""

    def __init__(self, rounded: Callable[[Tensor], Tensor]):
        super().__init__()
        self.rounded = rounded

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in PRODUCTS and arguments[0].dtype == torch.float32:
            arguments = [self.rounded(x) for x in arguments]
        return function(*arguments, **(options or {}))
