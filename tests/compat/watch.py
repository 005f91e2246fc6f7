"""What runs below a call: which operators, and how large the tensors are that they make."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """The names of the operators that ran, and the elements of the largest new tensor."""

    def __init__(self):
        super().__init__()
        self.names, self.most = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.names.append(str(function))
        inputs = {x.untyped_storage().data_ptr() for x in arguments if isinstance(x, torch.Tensor)}
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in inputs:
                self.most = max(self.most, x.numel())
        return result
