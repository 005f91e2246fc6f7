"""Finds a CUDA compiler that fits the installed torch, or says exactly what is missing.

Used while building only (build.py); the kernels include nothing but the CUDA runtime's own headers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What a build is for where there is no GPU, as far as nvcc knows it: every later minor version of an architecture runs
# the code of an earlier one, and the PTX of the last is for those to come.
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
SYSTEM = Path("/usr/local")  # where toolkits are installed
TOLD = ("CUDA_HOME", "CUDA_PATH")  # environment variables


class Toolkit(NamedTuple):
    """A compiler, its headers and the runtime library to link."""

    home: str
    version: str  # major.minor
    include: list[str]
    runtime: str

    @property
    def flags(self) -> list[str]:
        """What this nvcc takes besides build.NVCC_FLAGS: the code of four architectures is 10 MB, packed 0.8 MB."""
        return ["--compress-mode=size"] if tuple(map(int, self.version.split("."))) >= (12, 8) else []

    @property
    def default_architectures(self) -> str:
        """Those of ARCHITECTURES that this nvcc knows: before 12.8 it knows neither 10.0 nor 12.0."""
        answer = _answer(f"{self.home}/bin/nvcc", "--list-gpu-arch")
        known = re.findall(r"compute_(\d+)(\d)", answer)
        # Where it does not answer, torch's build says what it cannot compile.
        usable = [each for each in ARCHITECTURES if not known or tuple(each.split(".")) in known]
        return ";".join(usable) + "+PTX"

    @property
    def architectures(self) -> str:
        """What to compile for: TORCH_CUDA_ARCH_LIST, or the GPUs that are here, or else the default."""
        return os.environ.get("TORCH_CUDA_ARCH_LIST") or _here() or self.default_architectures

    def use(self) -> None:
        """Lets torch's build_ext compile with it, for `architectures`."""
        from torch.utils import cpp_extension

        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = self.home
        os.environ["TORCH_CUDA_ARCH_LIST"] = self.architectures


def _here() -> str:
    """The GPUs of this machine that torch runs on; empty where there is none."""
    import torch

    if not torch.cuda.is_available():
        return ""
    # nvcc is of torch's version: it knows no newer GPU than torch does, whose PTX runs on newer ones.
    known = [re.findall(r"\d+", name)[0] for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    known_to_torch = sorted((int(number[:-1]), int(number[-1])) for number in known)
    oldest, newest = known_to_torch[0], known_to_torch[-1]
    here = {min(newest, torch.cuda.get_device_capability(index)) for index in range(torch.cuda.device_count())}
    usable = sorted(each for each in here if each >= oldest)  # of older ones nvcc knows nothing either
    return ";".join(f"{major}.{minor}" for major, minor in usable) + "+PTX" if usable else ""


def find() -> tuple[Toolkit | None, list[str]]:
    """The toolkit, or None and what is lacking, each with what to do about it."""
    import torch

    if not sys.platform.startswith("linux"):
        return None, ["a supported system: the CUDA kernels are compiled on Linux"]
    wanted = torch.version.cuda
    if wanted is None:
        return None, [f"a torch for CUDA: torch is {torch.__version__}"]
    found: dict[str, str] = {}
    incomplete: list[str] = []
    for nvcc in _compilers():
        home, version = _about(nvcc)
        found.setdefault(version, nvcc)
        if version == wanted:
            toolkit, lacking = _with_libraries(home, version) if home else (None, [_homeless(nvcc)])
            if toolkit:
                return toolkit, []
            incomplete = incomplete or lacking
    if incomplete:
        return None, incomplete
    others = "".join(f"; {nvcc} is of CUDA {version or 'an unknown version'}" for version, nvcc in found.items())
    where = next((f"; {name} is {os.environ[name]}" for name in TOLD if os.environ.get(name)), "")
    return None, [f"nvcc of CUDA {wanted}, as torch {torch.__version__}{where}{others}: {how_to_install(wanted)}"]


def _homeless(nvcc: str) -> str:
    return f"the toolkit of {nvcc}, which does not say where it lies (nvcc needs g++ on the PATH)"


def how_to_install(version: str) -> str:
    """Where a compiler of this CUDA version comes from."""
    if packages(version):
        return f"pip install {' '.join(map(repr, packages(version)))}, or set CUDA_HOME"
    return f"install the CUDA toolkit {version} and set CUDA_HOME"


def packages(version: str) -> list[str]:
    """The packages of the index that together are a compiler; none before CUDA 13, which has no nvcc there."""
    if int(version.partition(".")[0]) < 13:
        return []
    # All of one minor version: nvcc refuses the PTX of a newer nvvm.
    return [f"{name}=={version}.*" for name in ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")]


def _compilers() -> Iterator[str]:
    """Where nvcc may be, best first; nowhere else where CUDA_HOME or CUDA_PATH is set."""
    if told := next(filter(None, map(os.environ.get, TOLD)), None):
        candidates = [Path(told, "bin", "nvcc")]
    else:
        on_path = shutil.which("nvcc")
        candidates = [
            *sorted(_pip_root().glob("*/bin/nvcc")),
            *([Path(on_path)] if on_path else []),
            *sorted(SYSTEM.glob("cuda*/bin/nvcc")),
        ]
    return (str(path) for path in candidates if path.is_file())


def _pip_root() -> Path:
    """Where the index's CUDA packages lie: beside torch."""
    import torch

    return Path(torch.__file__).parents[1] / "nvidia"


def _about(nvcc: str) -> tuple[str, str]:
    """Its toolkit's folder and version, from itself: the command may be a wrapper that lies elsewhere."""
    # Through a link nvcc does not find its profile, and says nothing; a wrapper may be a link to something else.
    answers = (
        _answer(path, "-dryrun", "-x", "cu", os.devnull) for path in dict.fromkeys((nvcc, os.path.realpath(nvcc)))
    )
    home = next(filter(None, (re.search(r"^#\$ TOP=(.*)$", answer, re.MULTILINE) for answer in answers)), None)
    version = re.search(r"release (\d+\.\d+)", _answer(nvcc, "--version"))
    return os.path.realpath(home[1]) if home else "", version[1] if version else ""


def _answer(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return answer.stdout + answer.stderr


def _with_libraries(home: str, version: str) -> tuple[Toolkit | None, list[str]]:
    """Headers and runtime library: the toolkit's own or those of the index's packages."""
    # cu13 and the like; before CUDA 13 a folder a package.
    beside_torch = [path for pattern in ("cu[0-9]*", "cuda_*") for path in sorted(_pip_root().glob(pattern))]
    roots = [Path(home), *beside_torch]
    # All of them: the index's packages split the headers.
    # conda's packages keep headers and libraries by target.
    folders = ("include", "targets/*/include")
    found = (os.path.realpath(folder) for root in roots for name in folders for folder in sorted(root.glob(name)))
    include = list(dict.fromkeys(found))
    headers = any(Path(folder, "cuda_runtime.h").is_file() for folder in include)
    # The index's packages hold the library under its full name only.
    patterns = (f"libcudart.so.{version.partition('.')[0]}", "libcudart.so")
    lib_folders = ("lib64", "lib", "targets/*/lib")
    libraries = (
        path for root in roots for name in lib_folders for what in patterns for path in root.glob(f"{name}/{what}")
    )
    runtime = next((str(path) for path in libraries if path.is_file()), None)
    if headers and runtime:
        return Toolkit(home, version, include, runtime), []
    what = "libcudart" if headers else "cuda_runtime.h"
    return None, [f"{what} of CUDA {version}, beside {home} or torch: pip install nvidia-cuda-runtime=={version}.*"]


if __name__ == "__main__":
    # For the Makefile: the packages to install, none where a compiler is there or torch has no use for one.
    import torch

    if torch.version.cuda and find()[0] is None:
        print(*packages(torch.version.cuda))
