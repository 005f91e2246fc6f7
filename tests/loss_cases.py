"""Every form of every loss, as a name and its arguments: what test_losses.py runs over."""

import pytest
import torch
from backends import device_of, every_backend, every_fused_backend
from strategies import embeddings, lay_out

import ssl_fast
from ssl_fast import NegativeQueue, functional

CASES = ["nt_xent", "info_nce in batch", "info_nce shared", "info_nce own", "info_nce queue"]


def operator_of(case: str) -> str:
    return case.partition(" ")[0]


def every_case(but: tuple[str, ...] = ()):
    return pytest.mark.parametrize("case", [case for case in CASES if case not in but])


# Both losses have kernels on the same backends: one list serves (test_names.py asserts it).
on_every_backend = every_backend("nt_xent")
on_every_fused_backend = every_fused_backend("nt_xent")


def arguments_of(case, backend="cpu", count=30, negatives=50, dim=17, dtype=torch.float32, layout="contiguous"):
    """The tensors (or None, or a queue) of a case, by name, in the order of the signature."""
    device = device_of(backend)

    def rows(number, seed):
        return lay_out(embeddings(number, dim, dtype, "ordinary", seed).to(device), layout)

    if case == "nt_xent":
        return {"z1": rows(count, 0), "z2": rows(count, 1)}
    arguments = {"query": rows(count, 0), "positive": rows(count, 1), "negatives": None}
    if case == "info_nce shared":
        arguments["negatives"] = rows(negatives, 2)
    elif case == "info_nce own":
        own = embeddings(count * negatives, dim, dtype, "ordinary", 2).to(device)
        arguments["negatives"] = lay_out(own.view(count, negatives, dim), layout)
    elif case == "info_nce queue":
        arguments["negatives"] = NegativeQueue(negatives, dim, dtype=dtype, seed=3).to(device)
    return arguments


def gradients_of(case: str) -> list[str]:
    """The names of the tensors that can have a gradient."""
    if case == "nt_xent":
        return ["z1", "z2"]
    return ["query", "positive"] + (["negatives"] if case in ("info_nce shared", "info_nce own") else [])


def loss_rows(case: str, count: int) -> int:
    return 2 * count if case == "nt_xent" else count


def loss_of(case, backend, arguments, *options, **named):
    with ssl_fast.backend(backend):
        return getattr(functional, operator_of(case))(*arguments.values(), *options, **named)


def leaves(arguments, names):
    return {
        name: x.detach().clone().requires_grad_() if name in names else x
        for name, x in arguments.items()
    }  # fmt: skip
