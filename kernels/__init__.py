"""The Triton kernels, one module an operator. Importing this package does not need Triton; its modules do."""

from __future__ import annotations

import importlib

import torch

# The module of each operator (csrc/ops.cpp); its function has the operator's name, less triton_.
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
    # Beside C++ kernels for CUDA, which have the name without triton_ (backends.py chooses).
    "triton_ema_update_": "ema",
    "triton_enqueue_": "enqueue",
}
registered: dict[str, torch.library.Library] = {}


def _first_call_imports(operator: str):
    """The operator's function, imported when it is first called: Triton is slow to import."""
    found = []

    def run(*arguments):
        if not found:
            module = importlib.import_module(f".{MODULES[operator]}", __name__)
            found.append(getattr(module, operator.removeprefix("triton_")))
        return found[0](*arguments)

    return run


def register(dispatch_key: str) -> None:
    """Makes the kernels the operators' implementation for a dispatch key: "CUDA" (ROCm's too).

    "CPU", in place of the C++ ones, is for the tests, which run the kernels in Triton's interpreter.
    """
    library = torch.library.Library("ssl_fast", "IMPL")
    for operator in MODULES:
        library.impl(operator, _first_call_imports(operator), dispatch_key, allow_override=True)
    registered[dispatch_key] = library
