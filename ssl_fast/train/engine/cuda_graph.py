"""A training step's forward and backward as one CUDA graph, for networks that wait for their launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.method import Result

EAGER_STEPS = 3  # before the capture: libraries choose their algorithms and allocate what they keep


class CapturedStep:
    """step(views, index) of constant shapes, which zeroes no gradient: replayed, it writes those of the capture.

    The optimiser stays outside: its learning rate changes. The result's tensors are overwritten by the next call.
    """

    def __init__(self, step: Callable[[list[Tensor], Tensor], Result]):
        self.step = step
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, views: list[Tensor], index: Tensor) -> Result:
        self.calls += 1
        if self.calls <= EAGER_STEPS:
            return self._on_another_stream(views, index)
        if self.graph is None:
            self.views, self.index = [view.clone() for view in views], index.clone()
            self.graph = torch.cuda.CUDAGraph()
            # The gradients are None here (zero_grad) and made by the capture: each replay assigns them anew.
            with torch.cuda.graph(self.graph):
                self.result = self.step(self.views, self.index)
        else:
            torch._foreach_copy_([*self.views, self.index], [*views, index])
        self.graph.replay()
        return self.result

    def _on_another_stream(self, views: list[Tensor], index: Tensor) -> Result:
        # As PyTorch asks of the steps before a capture: autograd's streams are those of the forward pass.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step(views, index)
        torch.cuda.current_stream().wait_stream(stream)
        return result
