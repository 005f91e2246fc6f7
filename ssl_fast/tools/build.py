"""Compiles `ssl_fast._C`: the one list of sources and flags, for setup.py and for `ssl-fast build`.

setup.py loads this file by its path, before the package exists: nothing of ssl_fast but
cuda_toolkit.py is imported here, and torch only inside the functions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from . import cuda_toolkit

PACKAGE = Path(__file__).resolve().parents[1]
EXTENSION = "ssl_fast._C"
RECORD = "_C.json"  # what the extension was compiled for; ssl_fast/operators/loading.py reads it
OLDEST_TORCH = "2.11"

SOURCES = ("*.cpp", "operators/*.cpp", "cpu/*.cpp", "cpu/simd/*.cpp")
CUDA_SOURCES = ("cuda/*.cpp", "cuda/*.cu")
SHIPPED = ("**/*.cpp", "**/*.h", "**/*.cu", "**/*.cuh")
# No -march=native: wheels run on other machines, and the code chooses the SIMD level when it runs.
# -fno-math-errno and -fno-trapping-math let loops vectorise; NaN and Inf keep their meaning.
# -g0: Python's own flags bring -g, which makes the binary many times larger.
FLAGS = ("-O3", "-std=c++20", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-g0")
NVCC_FLAGS = ("-O3", "-std=c++20")  # C++17: nvcc 13 misreads a header of ATen


class BuildError(Exception):
    """The extension cannot be built; the message says why and what to do."""


def csrc_folder() -> Path:
    """The C++ sources: inside an installed package, beside ssl_fast/ in a checkout."""
    inside = PACKAGE / "csrc"
    return inside if inside.is_dir() else PACKAGE.parent / "csrc"


def switch(environment: Any, name: str = "SSL_FAST_NATIVE") -> bool | None:
    """What SSL_FAST_NATIVE or SSL_FAST_CUDA asks for: True, False, or None where it is not set."""
    value = environment.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name}: expected 0, 1 or nothing, got {value!r}")
    return None if value == "" else value == "1"


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first of g++, c++ and clang++; empty where there is none."""
    # g++ first: its OpenMP runtime is the one that torch brings (see openmp_flags).
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    commands = (shlex.split(candidate) for candidate in candidates)
    return next((command for command in commands if shutil.which(command[0])), [])


def compiler_version() -> str:
    """The first line of the compiler's --version."""
    answer = subprocess.run([*compiler(), "--version"], capture_output=True, text=True)
    return (answer.stdout or answer.stderr).partition("\n")[0].strip()


def source_files(csrc: Path, patterns: tuple[str, ...] = SOURCES) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in csrc.glob(pattern))


def toolkit() -> tuple[cuda_toolkit.Toolkit | None, list[str]]:
    """The CUDA toolkit to compile with, or None and why. Raises BuildError where SSL_FAST_CUDA=1 and there is none."""
    wanted = switch(os.environ, "SSL_FAST_CUDA")
    if wanted is False:
        return None, ["nothing: SSL_FAST_CUDA=0 asks for none"]
    found, lacking = cuda_toolkit.find()
    if wanted and found is None:
        reasons = "\n".join(f"  - {what}" for what in lacking)
        raise BuildError(f"SSL_FAST_CUDA=1, but the CUDA kernels cannot be compiled. Missing:\n{reasons}")
    return found, lacking


def missing(csrc: Path) -> list[str]:
    """What is lacking to compile here, each with what to do about it; empty where nothing is."""
    found = []
    if os.name == "nt":
        found.append("a supported system: Linux and macOS can compile it, Windows runs the plain PyTorch code")
    try:
        import torch

        if torch.torch_version.TorchVersion(torch.__version__) < OLDEST_TORCH:
            found.append(f"torch {OLDEST_TORCH} or newer: torch is {torch.__version__}")
    except (ImportError, OSError) as error:
        found.append(
            f"torch, as this build sees it ({error}): with torch installed, run `ssl-fast build` afterwards, "
            "or install with --no-build-isolation"
        )
    if not compiler():
        asked = os.environ.get("CXX")
        found.append(f"a C++ compiler: {f'CXX={asked} is not there' if asked else 'install g++ or set CXX'}")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        found.append("the Python headers (Python.h): install python3-dev, python3-devel or the like")
    if not source_files(csrc):
        found.append(f"the C++ sources: {csrc} holds none")
    return found


def openmp_flags() -> list[str]:
    """at::parallel_for is a loop over OpenMP threads that is compiled into the caller.

    Only g++ on Linux: there torch already loads the runtime that the symbols belong to. For the
    same reason nothing is linked: a second runtime would not obey torch.set_num_threads.
    """
    gnu = sys.platform.startswith("linux") and "clang" not in compiler_version().lower()
    return ["-fopenmp"] if gnu else []


def source_digest(csrc: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SHIPPED for path in csrc.glob(pattern)}):
        digest.update(f"{path.relative_to(csrc)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def record(csrc: Path) -> dict[str, Any]:
    """Everything that a compiled extension depends on."""
    import torch

    cuda, lacking = toolkit()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiler": compiler_version(),
        "flags": [*FLAGS, *openmp_flags()],
        "cuda": cuda and {"version": cuda.version, "architectures": cuda.architectures},
        "cuda_missing": lacking,
        "sources": source_digest(csrc),
    }


def description(csrc: Path) -> str:
    """What a build makes and what it leaves out, as one block."""
    about = record(csrc)
    lines = [f"ssl_fast._C for torch {about['torch']}, Python {about['python']}, by {about['compiler']}"]
    if about["cuda"]:
        lines.append("CUDA kernels: by nvcc {version} for {architectures}".format(**about["cuda"]))
    else:
        lines += ["CUDA kernels: left out (Triton's take their place). Missing:"]
        lines += [f"  - {what}" for what in about["cuda_missing"]]
    return "\n".join(["-" * 80, *lines, "-" * 80])


def extension(csrc: Path) -> Any:
    """The setuptools extension. csrc: relative to the working directory in setup.py, as sdists want it."""
    from torch.utils.cpp_extension import CppExtension

    cuda, _ = toolkit()
    return CppExtension(
        EXTENSION,
        source_files(csrc, SOURCES + CUDA_SOURCES if cuda else SOURCES),
        include_dirs=[str(csrc.resolve()), *(cuda.include if cuda else [])],
        extra_compile_args={"cxx": [*FLAGS, *openmp_flags()], "nvcc": [*NVCC_FLAGS, *(cuda.flags if cuda else [])]},
        libraries=["c10_cuda"] if cuda else [],
        # By its path: the link then names the runtime that torch loads. No driver is needed to load the extension.
        extra_link_args=[cuda.runtime] if cuda else [],
    )


def build_ext_command(csrc: Path) -> Any:
    """The build_ext command: torch's, with a record of what it compiled for and a hint where it fails."""
    import torch
    from setuptools.errors import BaseError
    from torch.utils.cpp_extension import BuildExtension

    os.environ["CXX"] = shlex.join(compiler())
    # ninja, where it is installed beside an interpreter whose environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

    class BuildNative(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # Objects of another torch are never reused. ninja keeps the rest incremental; `force`
            # only keeps setuptools from judging by the age of the sources alone.
            self.build_temp = os.path.join(self.build_temp, f"torch-{torch.__version__}")  # type: ignore[has-type]
            self.force = True

        def run(self) -> None:
            folders = [Path(self.build_lib, *EXTENSION.split(".")[:-1])]
            if self.inplace:
                folders.append(Path(self.get_ext_fullpath(EXTENSION)).parent)
            # Gone before the binary changes and back after: a record never belongs to another binary.
            for folder in folders:
                (folder / RECORD).unlink(missing_ok=True)
            print(description(csrc), file=sys.stderr)
            if cuda := toolkit()[0]:
                cuda.use()
            super().run()
            for folder in folders:
                write_record(folder, record(csrc))

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except (RuntimeError, ValueError, BaseError) as error:  # ValueError: of a TORCH_CUDA_ARCH_LIST
                raise BaseError(
                    f"compiling {EXTENSION} with {compiler_version()} for torch {torch.__version__} failed: {error}\n"
                    "The compiler's own message is above. A compiler with C++20 is needed (g++ 11 or newer); "
                    "CXX chooses another one. SSL_FAST_CUDA=0 leaves the CUDA kernels out, SSL_FAST_NATIVE=0 the whole "
                    "extension."
                ) from error

    return BuildNative


def write_record(folder: Path, contents: dict[str, Any]) -> None:
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(contents, indent=1) + "\n")
    os.replace(part, folder / RECORD)


def is_current() -> bool:
    """Whether the package holds an extension for this torch, compiler and these sources."""
    if not binary().is_file():
        return False
    try:
        return json.loads((PACKAGE / RECORD).read_text()) == record(csrc_folder())
    except (OSError, ValueError):
        return False


def binary() -> Path:
    return PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def compile_into_package() -> None:
    """Compiles beside the installed package and moves the result in when it is whole."""
    csrc = csrc_folder()
    lacking = missing(csrc)
    if lacking:
        raise BuildError("\n".join(["missing to compile the extension:", *(f"  - {what}" for what in lacking)]))
    try:
        from setuptools import Distribution
        from setuptools.errors import BaseError
    except ImportError as error:
        raise BuildError(f"setuptools cannot be imported ({error}): pip install 'setuptools>=77'") from error
    try:
        # Inside the package, so that the last step is a rename, and first, so that a folder that
        # cannot be written to is known before minutes of compiling.
        temporary = tempfile.TemporaryDirectory(prefix=".build-", dir=PACKAGE)
    except OSError as error:
        raise BuildError(
            f"cannot write to {PACKAGE}: {error.strerror}; install ssl_fast where you may write"
        ) from error
    with temporary as folder:
        distribution = Distribution(
            {
                "name": "ssl_fast",
                "ext_modules": [extension(csrc)],
                "cmdclass": {"build_ext": build_ext_command(csrc)},
            }
        )
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = folder, os.path.join(folder, "objects")
        try:
            command.ensure_finalized()
            command.run()
        except BaseError as error:
            raise BuildError(str(error)) from error
        built = Path(folder, "ssl_fast")
        (PACKAGE / RECORD).unlink(missing_ok=True)
        os.replace(built / binary().name, binary())
        os.replace(built / RECORD, PACKAGE / RECORD)


def main(arguments: list[str]) -> int:
    """`ssl-fast build`."""
    parser = argparse.ArgumentParser(
        prog="ssl-fast build", description="Compile the extension for the installed torch."
    )
    parser.add_argument("--force", action="store_true", help="compile even if the extension is up to date")
    force = parser.parse_args(arguments).force
    try:
        if not force and compiler() and is_current():
            print(f"{binary()} is up to date (--force compiles it again)")
            return 0
        compile_into_package()
    except BuildError as error:
        print(f"ssl-fast build: {error}", file=sys.stderr)
        return 1
    print(f"built {binary()}")
    return 0
