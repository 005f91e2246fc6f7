"""The kinds of arithmetic that the kernels know, and what each is held to."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

import torch

from tests.helpers import compare

from .products import Products, through, to_tf32


class Kind(NamedTuple):
    """dtype: of embeddings. keys: of a queue. precision: torch's setting of float32 products. tie: similarities that
    are closer than this may be ordered either way."""

    dtype: torch.dtype
    keys: torch.dtype
    precision: str = "ieee"
    tie: float = 1e-6


KINDS = {
    "ieee": Kind(torch.float32, torch.float32),
    "tf32": Kind(torch.float32, torch.float32, "tf32", 1e-3),
    "bfloat16": Kind(torch.bfloat16, torch.bfloat16),
    "float16": Kind(torch.float16, torch.float16),
    "float64": Kind(torch.float64, torch.float64, tie=1e-12),
    # MoCo under autocast: queries in half precision, the queue in float32, products in TF32.
    "bfloat16, float32 queue": Kind(torch.bfloat16, torch.float32, tie=1e-3),
    "float16, float32 queue": Kind(torch.float16, torch.float32, tie=1e-3),
}
PLAIN = ("ieee", "tf32", "bfloat16", "float16", "float64")
MIXED = tuple(name for name in KINDS if name not in PLAIN)
# Gradients: the project's bound for TF32, 2e-3. Losses: what rounding operands to the nearest costs at temperature 0.1.
# Operands cut off, as tensor cores do, would cost 2e-3 and fail.
TF32 = compare.Bound(loss=2e-4, gradient=2e-3, factor=2, never=1e-2)


@contextmanager
def arithmetic(name: str) -> Iterator[Kind]:
    """torch's setting of float32 products, what they are in eager code, and the bounds of this kind."""
    kind = KINDS[name]
    bounds = {torch.float32: TF32} if name == "tf32" or name in MIXED else {}
    rounded = through(kind.dtype) if kind.dtype.itemsize == 2 else to_tf32
    products = nullcontext() if name in ("ieee", "float64") else Products(rounded)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = kind.precision
    try:
        with mock.patch.dict(compare.BOUNDS, bounds), products:
            yield kind
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
