"""What every row carries: device, versions, commit, date."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import subprocess

from .processes import ROOT


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    try:
        answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def device() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton's interpreter"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


@functools.cache
def about() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "triton")}
    return {"device": device(), **versions, "commit": commit(), "date": str(datetime.date.today())}
