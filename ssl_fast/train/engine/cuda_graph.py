"""Forward and backward of a training step as one CUDA graph.

It pays for small networks, whose kernels take less time than their launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..models.method import Result

EAGER_STEPS = 3  # steps before the capture, in which libraries choose algorithms and allocate what they keep


class CapturedStep:
    """Runs `step` eagerly a few times, then captures it in a CUDA graph and replays the graph.

    The optimiser's own step is not part of it, since the learning rate changes. The next call overwrites the tensors of
    the result that a call returned.

    Args:
        step: Takes views and index, whose shapes never change, and computes loss and gradients.
        parameters: What the step computes gradients of. Every gradient must be None before each call.
    """

    def __init__(self, step: Callable[[list[Tensor], Tensor], Result], parameters: Iterable[Tensor]):
        self.step = step
        self.parameters = list(parameters)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, views: list[Tensor], index: Tensor) -> Result:
        self.calls += 1
        if self.calls <= EAGER_STEPS:
            return self._on_another_stream(views, index)
        if self.graph is None:
            self.views, self.index = [view.clone() for view in views], index.clone()
            self.graph = torch.cuda.CUDAGraph()
            # The gradients are None here, so the capture allocates them, and every replay overwrites their memory.
            with torch.cuda.graph(self.graph):
                self.result = self.step(self.views, self.index)
            self.gradients = [parameter.grad for parameter in self.parameters]
        else:
            torch._foreach_copy_([*self.views, self.index], [*views, index])
        self.graph.replay()
        # A replay runs kernels and no Python: zero_grad has set the attribute to None, and nothing else sets it again.
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.result

    def _on_another_stream(self, views: list[Tensor], index: Tensor) -> Result:
        # PyTorch asks for a side stream before a capture: autograd runs backward on the stream of the forward pass.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step(views, index)
        torch.cuda.current_stream().wait_stream(stream)
        return result
