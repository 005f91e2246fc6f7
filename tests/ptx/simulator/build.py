"""Compiles the interpreter with g++ when it is first used, and keeps the library by a hash of its sources."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .instructions import cpp_header
from .reports import ReportKind

_SOURCES = Path(__file__).parent / "cpp"
# Contraction would round once where PTX rounds twice.
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra")


def cache() -> Path:
    """Where built files lie: SSL_FAST_PTX_CACHE, or build/ptx of the checkout."""
    chosen = os.environ.get("SSL_FAST_PTX_CACHE")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[3] / "build" / "ptx"


def why_not() -> str:
    """Why the library cannot be built here; empty if it can."""
    return "" if shutil.which("g++") else "there is no g++ to compile the PTX simulator with"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled interpreter."""
    return ctypes.CDLL(str(_built()))


def _built() -> Path:
    header = cpp_header([kind.name for kind in ReportKind])
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    compiler = subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(b"\0".join([*sources, header.encode(), compiler, " ".join(_FLAGS).encode()])).hexdigest()
    target = cache() / f"simulator-{digest[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once: each in a folder of its own, and the last one's rename stands.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        Path(folder, "names.h").write_text(header)
        made = Path(folder, "simulator.so")
        command = ["g++", *_FLAGS, f"-I{folder}", f"-I{_SOURCES}", "-o", str(made), str(_SOURCES / "simulate.cpp")]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{answer.stderr}")
        os.replace(made, target)
    return target
