"""A key encoder and its query encoder in flat buffers: the momentum update is one pass over one tensor."""

from __future__ import annotations

import copy
import itertools
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from . import momentum as moving

# Elements: every parameter begins where vectors and 256-byte accesses of its dtype may.
ALIGNMENT = 64


class _Flat(NamedTuple):
    """Parameters of one pair of dtypes: two flat tensors, and what lies where in them."""

    target: Tensor
    source: Tensor
    pairs: list[tuple[Tensor, Tensor]]  # the parameters
    offsets: list[int]  # ... and where they begin, in elements

    def holds(self) -> bool:
        """Whether all parameters still lie here; moving or casting a module lays them elsewhere."""
        target, source = self.target.data_ptr(), self.source.data_ptr()
        size, source_size = self.target.element_size(), self.source.element_size()
        return all(
            t.shape == s.shape
            and t.stride() == s.stride()
            and (
                (t.data_ptr() == target + size * offset and s.data_ptr() == source + source_size * offset)
                or not t.numel()  # which has no address
            )
            for (t, s), offset in zip(self.pairs, self.offsets, strict=True)
        )


class FlatMomentum(nn.Module):
    """The key encoder of MoCo (He et al. 2020): a copy of `encoder` that follows it, by one pass over flat buffers.

    encoder: the query encoder. Its parameters become views of one tensor a dtype, with the same values and
        the same `Parameter` objects, so that optimizers made before stay good; the copy's likewise.
    buffers: what `update_` does with buffers, as in `ema_update_`: "copy" (default), "ema" or "keep".

    Raises TypeError or ValueError for an encoder with lazy parameters, other than floats and integers, tensor
    subclasses as those of sharding, or two parameters that share memory.

    `module` is the copy, without gradients; calling this module calls it. The state dict holds the copy's
    under `module.`. Whatever moves, casts or replaces parameters is noticed by the next `update_`, which lays
    them flat again; a CUDA graph captured before then writes where they were, and during a capture it is a
    RuntimeError. Pickling a single parameter writes the whole buffer that it lies in; a state dict holds it once.
    """

    def __init__(self, encoder: nn.Module, buffers: str = "copy"):
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a module, got {type(encoder).__name__}")
        checks.choice("buffers", buffers, moving.BUFFERS)
        lazy = next((name for name, x in encoder.named_parameters() if nn.parameter.is_lazy(x)), None)
        if lazy is not None:
            raise ValueError(
                f"encoder: expected parameters with shapes, got a lazy {lazy}: call the encoder once first"
            )
        for name, x in encoder.named_parameters():
            checks.dense(f"encoder[{name}]", x)
            if x.dtype not in checks.FLOATS and (x.dtype.is_floating_point or x.dtype.is_complex):
                raise TypeError(f"encoder[{name}]: expected float32, float64, bfloat16 or float16, got {x.dtype}")
            if type(x.data) is not Tensor:  # as FSDP2's
                raise TypeError(f"encoder[{name}]: expected a plain tensor, got {type(x.data).__name__}")
        with torch.inference_mode(False):  # the copy and the encoder's new memory are for training
            self.module = copy.deepcopy(encoder).requires_grad_(False)
        self._buffers_mode = buffers
        self._encoder = (encoder,)  # in a tuple: no part of this module
        self._flat: list[_Flat] = []
        self._known: list[Tensor] = []  # all parameters, as they were found then
        self._lay_flat()

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The copy's output."""
        return self.module(*arguments, **options)

    @torch.no_grad()
    def update_(self, momentum: float | Tensor, seed: int | Tensor | None = None) -> None:
        """copy = momentum * copy + (1 - momentum) * encoder, in place. Arguments and errors: `ema_update_`."""
        encoder = self._encoder[0]
        if torch.compiler.is_compiling():  # a trace has no addresses
            moving.ema_update_(self.module, encoder, momentum, self._buffers_mode, seed)
            return
        here = _parameters(self.module, encoder)
        same = len(here) == len(self._known) and all(map(operator.is_, here, self._known))
        if not same or not all(flat.holds() for flat in self._flat):
            self._lay_flat()
        averaged = [(flat.target, flat.source) for flat in self._flat]
        moving.update_with_buffers(averaged, self.module, encoder, momentum, self._buffers_mode, seed)
        # What autograd has saved of the copy is not its value any more.
        torch.autograd.graph.increment_version(
            [t for flat in self._flat for t, _ in flat.pairs if not t.is_inference()]
        )

    def _lay_flat(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("update_: parameters were moved or replaced; call it once before the graph capture")
        _refuse_shared_memory(self._encoder[0])
        pairs = moving.paired(*(dict(x.named_parameters()) for x in (self.module, self._encoder[0])))
        groups: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
        for t, s in pairs:
            groups.setdefault((t.device, t.dtype, s.dtype), []).append((t, s))
        self._flat = [_laid_flat(group) for group in groups.values()]
        self._known = _parameters(self.module, self._encoder[0])


def _parameters(*modules: nn.Module) -> list[Tensor]:
    """Of the modules and all in them. Each update walks here: parameters() takes three times as long."""
    parts, seen = list(modules), set()
    for part in parts:  # which grows
        for x in part._modules.values():
            if x is not None and x not in seen:
                seen.add(x)
                parts.append(x)
    return [x for part in parts for x in part._parameters.values() if x is not None]


def _refuse_shared_memory(module: nn.Module) -> None:
    """Two parameters over the same memory would part in the flat buffer, and train apart."""
    spans = []
    for name, x in module.named_parameters():
        if x.numel() and not x.is_meta:
            last = sum((length - 1) * step for length, step in zip(x.shape, x.stride(), strict=True))
            spans.append((str(x.device), x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size(), name))
    for (device, _, end, name), (other_device, begin, _, other) in itertools.pairwise(sorted(spans)):
        if device == other_device and begin < end:
            raise ValueError(
                f"encoder[{other}]: expected memory of its own, got that of {name}: use one Parameter twice"
            )


@torch.inference_mode(False)
@torch.no_grad()
def _laid_flat(pairs: list[tuple[Tensor, Tensor]]) -> _Flat:
    sizes = [-(-t.numel() // ALIGNMENT) * ALIGNMENT for t, _ in pairs]
    target, source = (pairs[0][i].new_zeros(sum(sizes)) for i in (0, 1))
    offsets = [0, *itertools.accumulate(sizes)][:-1]
    for (t, s), offset in zip(pairs, offsets, strict=True):
        # Both in the order of the encoder's memory, where that has no gaps.
        dense = torch.ops.aten.is_non_overlapping_and_dense(s)
        strides = s.stride() if dense else torch.empty(s.shape, device="meta").stride()
        for flat, x in ((target, t), (source, s)):
            place = flat.as_strided(t.shape, strides, offset)
            place.copy_(x)
            x.data = place
    return _Flat(target, source, pairs, offsets)
