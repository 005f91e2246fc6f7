"""The Triton kernels, a module for each operator, made of the parts in `engine`.

This package can be imported without Triton. Its modules cannot, and are imported when an operator is first called.
"""

from __future__ import annotations

import importlib

import torch

# The module of each operator. Its function has the operator's name, without triton_.
MODULES = {
    "nt_xent": "nt_xent",
    "nt_xent_backward": "nt_xent",
    "info_nce": "info_nce",
    "info_nce_backward": "info_nce",
    "similarity_lse": "similarity_lse",
    "similarity_lse_backward": "similarity_lse",
    "pair_similarity": "pair_similarity",
    "pair_similarity_backward": "pair_similarity",
    "class_similarity": "class_similarity",
    "class_similarity_backward": "class_similarity",
    "similarity_softplus": "similarity_softplus",
    "similarity_softplus_backward": "similarity_softplus",
    # The names without triton_ are those of the C++ kernels for CUDA; ssl_fast.operators.backends chooses.
    "triton_ema_update_": "ema",
    "triton_enqueue_": "enqueue",
}
registered: dict[str, torch.library.Library] = {}


def _first_call_imports(operator: str):
    """A function that imports the operator's own when it is first called, since importing Triton takes long."""
    found = []

    def run(*arguments):
        if not found:
            module = importlib.import_module(f".{MODULES[operator]}", __name__)
            found.append(getattr(module, operator.removeprefix("triton_")))
        return found[0](*arguments)

    return run


def register(dispatch_key: str) -> None:
    """Makes the kernels the operators' implementation for a dispatch key: "CUDA", which is ROCm's key too.

    Tests register them for "CPU" in place of the C++ kernels, to run them in Triton's interpreter.
    """
    library = torch.library.Library("ssl_fast", "IMPL")
    for operator in MODULES:
        library.impl(operator, _first_call_imports(operator), dispatch_key, allow_override=True)
    registered[dispatch_key] = library
