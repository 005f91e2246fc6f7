"""Everything compiled and loaded before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import checks, functional
from ..memory.queue import NegativeQueue


def warmup(
    device: torch.device | str,
    shapes: Iterable[tuple[int, int]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    queue_size: int | None = None,
) -> None:
    """Compiles and loads the kernels of all losses and of the queue, forward and backward, for these shapes.

    To be called before a CUDA-graph capture, inside which nothing may be compiled, loaded or waited for,
    and before timing. Triton compiles for the device's architecture, for dtype and width, and for sizes
    that are multiples of 16 apart from those that are not: give the shapes that will be used. Random
    inputs are made and freed; no state changes. The momentum update keeps a table for each list of
    tensors: call `ema_update_` once with yours. On a CPU this does little and is allowed.

    device: where the embeddings will be. shapes: (N, D) of the embeddings, N of one view. dtypes: of the
    embeddings. queue_size: also InfoNCE against a float32 `NegativeQueue` of so many rows, and its enqueue.
    Raises ValueError or TypeError for shapes or dtypes that no loss takes.
    """
    device, shapes, dtypes = _checked(device, shapes, dtypes, queue_size)
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    try:
        for count, dim in shapes:
            for dtype in dtypes:
                _run(device, count, dim, dtype, queue_size)
    finally:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
            torch.cuda.synchronize(device)
        else:
            torch.set_rng_state(state)


def _checked(
    device: Any, shapes: Any, dtypes: Any, queue_size: Any
) -> tuple[torch.device, list[tuple[int, int]], list[torch.dtype]]:
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {type(device).__name__}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected a torch.device or its name, got {device!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    for name, values in (("shapes", shapes), ("dtypes", dtypes)):
        if not isinstance(values, Iterable):
            raise TypeError(f"{name}: expected a sequence, got {type(values).__name__}")
    shapes, dtypes = list(shapes), list(dtypes)
    for shape in shapes:
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"shapes: expected pairs (rows, dim), got {type(shape).__name__}")
        if len(shape) != 2:
            raise ValueError(f"shapes: expected pairs (rows, dim), got {len(shape)} numbers")
        for value in shape:
            checks.sizes(shapes=value)
    for dtype in dtypes:
        checks.float_dtype("dtypes", dtype)
    if queue_size is not None:
        checks.sizes(queue_size=queue_size)
    return device, shapes, dtypes


def _run(device: torch.device, count: int, dim: int, dtype: torch.dtype, queue_size: int | None) -> None:
    views = [torch.randn(count, dim, device=device).to(dtype).requires_grad_() for _ in range(2)]
    queue = None if queue_size is None else NegativeQueue(queue_size, dim, seed=0).to(device)
    negatives = [None] if queue is None else [None, queue]
    on_device = torch.full((), 0.1, device=device, requires_grad=True)
    losses = (NT_XENT, *(_against(each) for each in negatives), *COMPOSED)
    # A number on either side of the fixed shift, and a temperature that is learnt.
    runs = [(losses, {"temperature": temperature}) for temperature in (0.1, 0.02, on_device)]
    # The kernels read the scale of a learnt temperature in float64, and a learnt logit_scale in its own dtype.
    runs.append(((functional.clip, functional.siglip), {"logit_scale": on_device}))
    for calls, options in runs:
        for call in calls:
            for return_stats in (False, True):
                result = call(*views, **options, return_stats=return_stats)
                (result[0] if return_stats else result).backward()
    if queue is not None:
        for normalize in (False, True):
            queue.enqueue_(views[0].detach(), normalize)


def _against(negatives: Any) -> Callable[..., Any]:
    def call(query: Tensor, positive: Tensor, **options: Any) -> Any:
        return functional.info_nce(query, positive, negatives, **options)

    return call


def _excluding(query: Tensor, positive: Tensor, **options: Any) -> Any:
    ids = torch.arange(len(query), device=query.device)
    return functional.info_nce(query, positive, exclude=(ids, ids), **options)


def _labelled(form: str) -> Callable[..., Any]:
    def call(one: Tensor, other: Tensor, **options: Any) -> Any:
        return functional.supcon(torch.stack([one, other], 1), form=form, **options)

    return call


# Between them every way through the primitive: rows with each other, both ways, one way, by place and by ids.
NT_XENT: Callable[..., Any] = functional.nt_xent
COMPOSED: tuple[Callable[..., Any], ...] = (
    _labelled("out"),
    _labelled("in"),
    functional.clip,
    functional.siglip,
    _excluding,
)
