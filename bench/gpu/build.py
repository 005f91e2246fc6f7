"""Compiles the extension in place for the GPUs that are here, on all cores, with ninja or without.

Does nothing where it is up to date; with --any also where there is one of any kind, and else leaves the kernels in
CUDA C++ out. In a checkout ssl_fast.kernels and ssl_fast.csrc are found only where the package was installed: links
stand in.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from .processes import ROOT


def link() -> None:
    package = ROOT / "ssl_fast"
    for name in ("kernels", "csrc"):
        if not (package / name).exists():
            (package / name).symlink_to(Path("..", name), target_is_directory=True)


def architectures() -> str:
    """For TORCH_CUDA_ARCH_LIST: those of the GPUs that are here; "" where there is none."""
    import torch

    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def compile_in_processes(compiler, objects: list[str], one) -> None:
    """Calls one(object) for each, as many at a time as there are cores.

    Processes, not threads: torch's wrapper changes the compiler object while nvcc compiles a file.
    """
    context = multiprocessing.get_context("fork")  # `one` closes over what cannot be sent to another process
    waiting, running = list(objects), []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            process = context.Process(target=one, args=(waiting.pop(),))
            process.start()
            running.append(process)
        running[0].join()
        if failed := [process for process in running if process.exitcode not in (None, 0)]:
            for process in running:
                process.terminate()
            raise RuntimeError(f"{len(failed)} of the files cannot be compiled; the compiler's words are above")
        running = [process for process in running if process.exitcode is None]


def without_ninja() -> None:
    """setuptools would compile one file after the other, which takes many minutes."""
    importlib.import_module("setuptools")  # puts its own distutils in the place of Python's, which 3.12 has no more
    CCompiler = importlib.import_module("distutils.ccompiler").CCompiler

    def compile(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
                extra_postargs=None, depends=None):  # fmt: skip
        macros, objects, extra_postargs, options, build = self._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        arguments = self._get_cc_args(options, debug, extra_preargs)
        compile_in_processes(
            self, objects, lambda name: self._compile(name, *build[name], arguments, extra_postargs, options)
        )
        return objects

    CCompiler.compile = compile


def main() -> int:
    link()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["--any"]:
        from ssl_fast.operators import loading

        if loading.extension is not None:
            print(f"there is {loading.extension.__file__}")
            return 0
        os.environ["SSL_FAST_CUDA"] = "0"
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    if found := architectures():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", found)
    from ssl_fast.tools import build

    if build.compiler() and build.is_current():
        print(f"{build.binary()} is up to date")
        return 0
    os.environ["SSL_FAST_NATIVE"] = "1"
    import torch.utils.cpp_extension

    if not torch.utils.cpp_extension.is_ninja_available():
        print("ninja is not installed: setuptools compiles, in several processes", flush=True)
        without_ninja()
    sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
    runpy.run_path("setup.py", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
