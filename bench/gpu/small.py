"""Every operator once at small sizes, for compute-sanitizer: python -m bench.gpu.small."""

from __future__ import annotations

import os
import sys

import torch

import ssl_fast
from ssl_fast import NegativeQueue, functional
from ssl_fast.operators import backends

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def rows(count: int, dtype: torch.dtype, *, dim: int = 20) -> torch.Tensor:
    return torch.randn(count, dim, device=DEVICE).to(dtype).requires_grad_()


def losses(dtype: torch.dtype) -> None:
    """Each way through the kernels, forward and backward; sizes that no tile divides."""
    queue = NegativeQueue(70, 20, dtype=dtype, seed=0).to(DEVICE)
    labels = torch.arange(37, device=DEVICE) % 5
    for loss in (
        functional.nt_xent(rows(37, dtype), rows(37, dtype), 0.1),
        functional.info_nce(rows(37, dtype), rows(37, dtype), queue, 0.1),
        functional.info_nce(rows(37, dtype), rows(37, dtype), rows(9, dtype), 0.1),
        functional.clip(rows(37, dtype), rows(37, dtype), 0.1),
        functional.siglip(rows(37, dtype), rows(37, dtype), 0.1),
        functional.supcon(rows(37, dtype), labels, 0.1),
    ):
        loss.backward()


def updates(dtype: torch.dtype) -> None:
    """Tensors that begin off the alignment of vectors; a queue that is passed more than it holds."""
    target, source = (
        [torch.ones(n, device=DEVICE, dtype=dtype)[1:] for n in (2, 9, 500 if INTERPRETED else 9000)] for _ in range(2)
    )
    ssl_fast.ema_update_(target, source, torch.tensor(0.9, device=DEVICE), seed=1)
    for normalize in (False, True):
        queue = NegativeQueue(70, 20, dtype=dtype).to(DEVICE)
        queue.enqueue_(torch.randn(90, 20, device=DEVICE), normalize)


def main() -> int:
    if INTERPRETED:
        from . import interpreter

        interpreter.use()
    for dtype in (torch.float32, torch.bfloat16):
        with ssl_fast.backend("triton"):
            losses(dtype)
            print(f"losses, {dtype}", flush=True)
        for name in ("cuda", "triton"):
            if why := backends.why_not("enqueue_", name, DEVICE):
                print(f"updates by {name}: {why}", flush=True)
                continue
            with ssl_fast.backend(name):
                updates(dtype)
                print(f"updates by {name}, {dtype}", flush=True)
    if not INTERPRETED:
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
