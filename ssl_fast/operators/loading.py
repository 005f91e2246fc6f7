"""Loads the compiled extension, with the schemas of all operators, and adds the Triton kernels. Never builds.

Why there is no extension is kept, for errors and for `ssl-fast doctor`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from . import fake_kernels

# By its name: in a checkout the folder lies beside ssl_fast/, where type checkers do not look for it.
kernels: Any = importlib.import_module("ssl_fast.kernels")

BUILD_RECORD = Path(__file__).parents[1] / "_C.json"


def _load():
    """The extension module, or the reason why there is none."""
    if not BUILD_RECORD.exists():
        return None, "it was not built (no compiler, or torch could not be seen, when ssl_fast was installed)"
    try:
        built_for = json.loads(BUILD_RECORD.read_text())["torch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{BUILD_RECORD.name} cannot be read: {error!r}"
    # torch's C++ interface changes between releases: loading against another one can crash.
    if built_for != torch.__version__:
        return None, f"it was built for torch {built_for} and this is torch {torch.__version__}"
    try:
        return importlib.import_module("ssl_fast._C"), ""
    except ImportError as error:
        return None, f"loading it failed: {error}"


extension, why_missing = _load()
# What it was compiled for (build.record): "cuda", and "cuda_missing" where it has no CUDA kernels.
record: dict[str, Any] = {} if extension is None else json.loads(BUILD_RECORD.read_text())


if extension is not None:
    fake_kernels.register(extension.kept_layout())
    if importlib.util.find_spec("triton") is not None:
        kernels.register("CUDA")


def warn_if_missing() -> None:
    if extension is None:
        warnings.warn(
            f"ssl_fast runs its plain PyTorch reference: the compiled extension is missing, {why_missing}. "
            "`ssl-fast build` compiles it.",
            RuntimeWarning,
            stacklevel=3,
        )
