"""PyTorch's own products on the CPU with operands in TF32, as tensor cores take them: what eager code would compute."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}


def rounded(x: Tensor) -> Tensor:
    """float32 to the nearest number with TF32's 10 bits after the point, as cvt.rna.tf32.f32 has it."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(x.isfinite(), ((bits + 0x1000) & ~0x1FFF).view(torch.float32), x)


class Products(TorchDispatchMode):
    """Inside, the operands of float32 matrix products are rounded, in the backward pass too."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in PRODUCTS and arguments[0].dtype == torch.float32:
            arguments = [rounded(x) for x in arguments]
        return function(*arguments, **(options or {}))
