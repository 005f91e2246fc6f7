"""Every form of every loss, as a name and its arguments: what test_losses.py runs over."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import ssl_fast
from ssl_fast import NegativeQueue, functional
from tests.helpers.backends import INTERPRETED, device_of, every_backend, every_fused_backend
from tests.helpers.strategies import embeddings, lay_out


class Inputs:
    """Makes a case's tensors: `rows(seed, *leading sizes)` in one dtype, layout and device."""

    def __init__(self, backend, count, negatives, dim, dtype, layout):
        self.device, self.count, self.negatives = device_of(backend), count, negatives
        self.dim, self.dtype, self.layout = dim, dtype, layout

    def rows(self, seed, *sizes):
        sizes = sizes or (self.count,)
        flat = embeddings(torch.Size(sizes).numel(), self.dim, self.dtype, "ordinary", seed).to(self.device)
        return lay_out(flat.view(*sizes, self.dim), self.layout)

    def ids(self, seed, count, of):
        """Integers below `of`, some of them large: kernels may compare no fewer than 64 bits."""
        ids = torch.randint(of, (count,), generator=torch.Generator().manual_seed(seed))
        return torch.where(ids % 3 == 0, ids + (1 << 40), ids).to(self.device)

    def queue(self):
        return NegativeQueue(self.negatives, self.dim, dtype=self.dtype, seed=3).to(self.device)

    def bank(self):
        return torch.nn.functional.normalize(self.rows(4, self.negatives).double(), dim=1).to(self.dtype)


class Case(NamedTuple):
    """arguments: by name, tensors and options; gradients: of which tensors; rows: losses for each of `count`."""

    arguments: Callable[[Inputs], dict]
    gradients: tuple[str, ...]
    rows: int = 1


def _views(x, **options):
    return {"z1": x.rows(0), "z2": x.rows(1), **options}


def _pair(x, **options):
    return {"a": x.rows(0), "b": x.rows(1), **options}


def _queries(x, negatives, **options):
    return {"query": x.rows(0), "positive": x.rows(1), "negatives": negatives, **options}


def _excluded(x, negatives, count):
    ids = x.ids(5, x.count, max(2, x.count // 3))
    return _queries(x, negatives, exclude=(ids, ids if count is None else x.ids(6, count, max(2, x.count // 3))))


def _positives(x, negatives, **options):
    return {"query": x.rows(0), "positives": x.rows(1, x.count, 3), "negatives": negatives, **options}


def _instances(x):
    index = torch.randint(x.negatives, (x.count,), generator=torch.Generator().manual_seed(7)).to(x.device)
    return {"features": x.rows(0), "index": index, "bank": x.bank()}


def _labelled(x, **options):
    labels = x.ids(8, x.count, max(2, x.count // 4))
    labels[2] = -7  # alone
    return {"features": x.rows(0), "labels": labels, **options}


_Z, _AB, _QK, _QKN = ("z1", "z2"), ("a", "b"), ("query", "positive"), ("query", "positive", "negatives")
_QP = ("query", "positives")
# The name begins with the function's.
ALL_CASES = {
    "nt_xent": Case(_views, _Z, 2),
    "info_nce in batch": Case(lambda x: _queries(x, None), _QK),
    "info_nce shared": Case(lambda x: _queries(x, x.rows(2, x.negatives)), _QKN),
    "info_nce own": Case(lambda x: _queries(x, x.rows(2, x.count, x.negatives)), _QKN),
    "info_nce queue": Case(lambda x: _queries(x, x.queue()), _QK),
    "info_nce by ids, in batch": Case(lambda x: _excluded(x, None, None), _QK),
    "info_nce by ids, shared": Case(lambda x: _excluded(x, x.rows(2, x.negatives), x.negatives), _QKN),
    "info_nce by ids, queue": Case(lambda x: _excluded(x, x.queue(), x.negatives), _QK),
    "multi_positive_info_nce in batch": Case(lambda x: _positives(x, None), _QP),
    "multi_positive_info_nce shared": Case(
        lambda x: _positives(x, x.rows(2, x.negatives), form="in"), (*_QP, "negatives")
    ),
    "multi_positive_info_nce queue": Case(lambda x: _positives(x, x.queue()), _QP),
    "moco_v3": Case(
        lambda x: {name: x.rows(i) for i, name in enumerate(("query1", "query2", "key1", "key2"))},
        ("query1", "query2", "key1", "key2"),
    ),
    "supcon": Case(_labelled, ("features",)),
    "supcon in": Case(lambda x: _labelled(x, form="in"), ("features",)),
    "supcon views": Case(lambda x: {"features": x.rows(0, x.count, 3), "labels": None}, ("features",), 3),
    "dcl": Case(_views, _Z, 2),
    "dcl weighted": Case(lambda x: _views(x, sigma=0.5), _Z, 2),
    "hard_negative_nt_xent": Case(_views, _Z, 2),
    "hard_negative_nt_xent debiased": Case(lambda x: _views(x, beta=0.3, tau_plus=0.1), _Z, 2),
    "clip": Case(_pair, _AB, 2),
    "siglip": Case(_pair, _AB),
    "instance_discrimination": Case(_instances, ("features",)),
}
# A case for every way through the kernels: the interpreter takes seconds for what takes milliseconds.
REPRESENTATIVE = [
    "nt_xent", "info_nce in batch", "info_nce shared", "info_nce own", "info_nce queue", "info_nce by ids, shared",
    "supcon in", "clip", "siglip",
]  # fmt: skip
CASES = REPRESENTATIVE if INTERPRETED else list(ALL_CASES)
# The class of each function.
CLASSES = {
    "nt_xent": ssl_fast.NTXentLoss,
    "info_nce": ssl_fast.InfoNCELoss,
    "multi_positive_info_nce": ssl_fast.MultiPositiveInfoNCELoss,
    "moco_v3": ssl_fast.MoCoV3Loss,
    "supcon": ssl_fast.SupConLoss,
    "dcl": ssl_fast.DCLLoss,
    "hard_negative_nt_xent": ssl_fast.HardNegativeNTXentLoss,
    "clip": ssl_fast.ClipLoss,
    "siglip": ssl_fast.SigLipLoss,
    "instance_discrimination": ssl_fast.InstanceDiscriminationLoss,
}
# The losses with kernels of their own; the others are made of the primitive's.
OPERATOR_CASES = list(ALL_CASES)[:5]


def operator_of(case: str) -> str:
    return case.partition(" ")[0]


def every_case(but: tuple[str, ...] = (), of: list[str] = CASES):
    return pytest.mark.parametrize("case", [case for case in of if case not in but])


# All losses have kernels on the same backends: one list serves (test_names.py asserts it).
on_every_backend = every_backend("nt_xent")
on_every_fused_backend = every_fused_backend("nt_xent")


def arguments_of(case, backend="cpu", count=30, negatives=50, dim=17, dtype=torch.float32, layout="contiguous"):
    """The arguments of a case by name: tensors, queues and options."""
    return ALL_CASES[case].arguments(Inputs(backend, count, negatives, dim, dtype, layout))


def gradients_of(case: str) -> list[str]:
    """The names of the tensors that can have a gradient."""
    return list(ALL_CASES[case].gradients)


def loss_rows(case: str, count: int) -> int:
    return ALL_CASES[case].rows * count


def loss_of(case, backend, arguments, temperature=0.1, reduction="mean", **options):
    with ssl_fast.backend(backend):
        function = getattr(functional, operator_of(case))
        return function(**arguments, temperature=temperature, reduction=reduction, **options)


def leaves(arguments, names):
    return {
        name: x.detach().clone().requires_grad_() if name in names else x
        for name, x in arguments.items()
    }  # fmt: skip
