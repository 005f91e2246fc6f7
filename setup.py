"""Builds the package: pure Python always, with the C++ extension where it fits the torch that will run it.

Switches, environment variables all:

  SSL_FAST_NATIVE   not set: compile if torch can be imported by this build and a C++ compiler and
                             Python.h are there; otherwise make the pure package and say what is
                             missing. `ssl-fast build` compiles it later.
                    1:       fail if it cannot be compiled.
                    0:       do not compile.
  SSL_FAST_CUDA     not set: compile the CUDA kernels too if torch is a CUDA build and an nvcc of the same
                             version is found (CUDA_HOME, pip's packages, the PATH, /usr/local/cuda*).
                    1:       fail if they cannot be compiled.
                    0:       do not compile them.
  TORCH_CUDA_ARCH_LIST  what they are compiled for, as for torch's own extensions; not set: the GPUs that
                    are there, or 8.0;9.0;10.0;12.0+PTX where there is none.
  CXX               the C++ compiler (default: g++, c++ or clang++, the first there is).
  MAX_JOBS          compile jobs at once (torch's own switch; default: all cores).

A build under pip's isolation does not see the installed torch, so it makes the pure package: torch's
C++ interface changes between releases, and an extension for another one could crash. To compile at
once: pip install --no-build-isolation . (with torch and setuptools installed, ninja if it should be
quick). The sources and flags are in ssl_fast/tools/build.py.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import find_packages, setup


def load(path: str):
    """A module by its path: importing ssl_fast itself would need torch."""
    # As a package of its own, whose modules are the package's: build.py imports one beside it.
    specification = importlib.util.spec_from_file_location(
        "ssl_fast_build", path, submodule_search_locations=[str(Path(path).parent)]
    )
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


build = load("ssl_fast/tools/build.py")


def native_arguments() -> dict:
    """The arguments of setup() that add the extension; none for the pure package."""
    wanted = build.switch(os.environ)
    if wanted is False:
        return {}
    csrc = Path("csrc")
    lacking = build.missing(csrc)
    if not lacking:
        return {"ext_modules": [build.extension(csrc)], "cmdclass": {"build_ext": build.build_ext_command(csrc)}}
    reasons = "\n".join(f"  - {what}" for what in lacking)
    if wanted:
        raise build.BuildError(f"SSL_FAST_NATIVE=1, but the extension cannot be compiled. Missing:\n{reasons}")
    print(
        f"{'-' * 80}\nssl_fast is built without its C++ extension and will run its plain PyTorch reference.\n"
        f"Missing:\n{reasons}\n`ssl-fast build` compiles the extension when these are there.\n{'-' * 80}",
        file=sys.stderr,
    )
    return {}


try:
    native = native_arguments()
except build.BuildError as error:
    sys.exit(f"error: {error}")

setup(
    # `kernels` and `csrc` are top folders of the checkout and parts of the package: the bare name
    # `kernels` belongs to another project, and `ssl-fast build` needs the C++ sources.
    packages=[
        *find_packages(include=["ssl_fast", "ssl_fast.*"]),
        "ssl_fast.kernels",
        *(f"ssl_fast.kernels.{name}" for name in find_packages("kernels")),
        "ssl_fast.csrc",
    ],
    package_dir={"ssl_fast.kernels": "kernels", "ssl_fast.csrc": "csrc"},
    package_data={
        "ssl_fast": ["py.typed", "*.pyi"],
        "ssl_fast.kernels.tuning": ["tiles.json"],
        "ssl_fast.csrc": list(build.SHIPPED),
    },
    **native,
)
