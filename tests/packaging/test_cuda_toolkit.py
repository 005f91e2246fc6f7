"""Which CUDA compiler a build takes, what it says where there is none, and what that means to the backends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_fast.operators import backends, loading
from ssl_fast.tools import build, cuda_toolkit

ROOT = Path(__file__).parents[2]
VERSION = "13.0"
# What `nvcc --list-gpu-arch` prints, by version.
KNOWN = {
    "11.8": [35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
    "12.6": [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
    "12.8": [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 120],
    "13.0": [75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121],
}


def toolkit(folder: Path, version: str, parts=("include/cuda_runtime.h", "lib64/libcudart.so.13")) -> Path:
    """As much of a CUDA toolkit as a build asks for its version and folder."""
    nvcc = folder / "bin" / "nvcc"
    for file in (nvcc, *(folder / part for part in parts)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    dry_run = f'echo "#$ TOP={folder}/bin/.." >&2'
    listed = "\\n".join(f"compute_{number}" for number in KNOWN.get(version, ()))
    nvcc.write_text(
        f'#!/bin/sh\ncase "$*" in *dryrun*) {dry_run};; *list-gpu-arch*) printf "{listed}";; '
        f'*) echo "release {version}, V{version}.88";; esac\n'
    )
    nvcc.chmod(0o755)
    return folder


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A torch for CUDA 13.0, and no compiler but what a test adds."""
    monkeypatch.setattr(torch.version, "cuda", VERSION)
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "SSL_FAST_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    (tmp_path / "path").mkdir()
    monkeypatch.setattr(cuda_toolkit, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(cuda_toolkit, "_pip_root", lambda: tmp_path / "pip")
    return tmp_path


def test_none_at_all_says_which_packages(alone):
    found, (lacking,) = cuda_toolkit.find()
    assert found is None
    assert f"nvcc of CUDA {VERSION}, as torch {torch.__version__}" in lacking
    for package in ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt"):
        assert f"'{package}=={VERSION}.*'" in lacking


def test_before_cuda_13_the_index_has_no_compiler(alone, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "install the CUDA toolkit 12.8 and set CUDA_HOME" in cuda_toolkit.find()[1][0]
    assert cuda_toolkit.packages("12.8") == []


def test_a_torch_without_cuda(alone, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    toolkit(alone / "system" / "cuda", VERSION)
    assert "a torch for CUDA: torch is" in cuda_toolkit.find()[1][0]


@pytest.mark.parametrize("place", ["system/cuda", "system/cuda-13.0", "pip/cu13", "told"])
def test_where_it_looks(alone, monkeypatch, place):
    home = toolkit(alone / place, VERSION)
    if place == "told":
        assert cuda_toolkit.find()[0] is None
        monkeypatch.setenv("CUDA_HOME", str(home))
    found, lacking = cuda_toolkit.find()
    assert lacking == []
    assert (found.home, found.version) == (str(home), VERSION)
    assert found.include == [str(home / "include")]
    assert found.runtime == str(home / "lib64" / "libcudart.so.13")


def test_a_wrapper_on_the_path_stands_for_its_toolkit(alone):
    home = toolkit(alone / "elsewhere", VERSION)
    wrapper = alone / "path" / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    assert cuda_toolkit.find()[0].home == str(home)


def test_a_link_on_the_path_stands_for_its_toolkit(alone):
    """Called through a link from another folder, nvcc does not find its profile and prints no folder."""
    home = toolkit(alone / "elsewhere", VERSION)
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(nvcc.read_text().replace('case "$*" in', 'case "$(dirname $0) $*" in */path\\ *dryrun*) ;;'))
    (alone / "path" / "nvcc").symlink_to(nvcc)
    (alone / "path" / "dirname").symlink_to("/usr/bin/dirname")
    assert cuda_toolkit.find()[0].home == str(home)


def test_an_incomplete_one_is_passed_by(alone):
    silent = toolkit(alone / "system" / "cuda", VERSION) / "bin" / "nvcc"
    silent.write_text(f"#!/bin/sh\ncase \"$*\" in *dryrun*) printf '\\377';; *) echo release {VERSION},;; esac\n")
    toolkit(alone / "system" / "cuda-12", VERSION, parts=())
    found, (lacking,) = cuda_toolkit.find()
    assert found is None
    assert lacking.startswith(f"the toolkit of {silent}, which does not say where it lies")
    home = toolkit(alone / "system" / "cuda-13", VERSION)
    assert cuda_toolkit.find()[0].home == str(home)


def test_the_layout_of_conda(alone):
    parts = ("targets/x86_64-linux/include/cuda_runtime.h", "targets/x86_64-linux/lib/libcudart.so")
    home = toolkit(alone / "system" / "cuda", VERSION, parts)
    found = cuda_toolkit.find()[0]
    assert found.include == [str(home / "targets/x86_64-linux/include")]
    assert found.runtime == str(home / "targets/x86_64-linux/lib/libcudart.so")


def test_the_one_that_fits_torch_is_taken(alone):
    for version in ("12.9", VERSION, "13.2"):
        toolkit(alone / "system" / f"cuda-{version}", version)
    assert cuda_toolkit.find()[0].home == str(alone / "system" / f"cuda-{VERSION}")


def test_a_mismatch_is_named(alone):
    home = toolkit(alone / "system" / "cuda", "13.2")
    found, (lacking,) = cuda_toolkit.find()
    assert found is None
    assert f"{home}/bin/nvcc is of CUDA 13.2" in lacking
    assert "nvidia-cuda-nvcc==13.0.*" in lacking


def test_cuda_home_is_obeyed_alone(alone, monkeypatch):
    toolkit(alone / "system" / "cuda", VERSION)
    monkeypatch.setenv("CUDA_HOME", str(toolkit(alone / "told", "12.8")))
    assert "told/bin/nvcc is of CUDA 12.8" in cuda_toolkit.find()[1][0]
    monkeypatch.setenv("CUDA_HOME", str(alone / "nowhere"))
    assert f"; CUDA_HOME is {alone / 'nowhere'}: pip install" in cuda_toolkit.find()[1][0]


@pytest.mark.parametrize(
    ("parts", "what"), [(("lib64/libcudart.so.13",), "cuda_runtime.h"), (("include/cuda_runtime.h",), "libcudart")]
)
def test_headers_and_library_are_needed(alone, parts, what):
    toolkit(alone / "system" / "cuda", VERSION, parts)
    found, (lacking,) = cuda_toolkit.find()
    assert found is None
    assert lacking.startswith(f"{what} of CUDA {VERSION}")
    assert "nvidia-cuda-runtime==13.0.*" in lacking


def test_headers_and_library_may_lie_beside_torch(alone):
    toolkit(alone / "system" / "cuda", VERSION, parts=())
    toolkit(alone / "pip" / "cu13", "0.0", parts=("include/cuda_runtime.h", "lib/libcudart.so.13"))
    found = cuda_toolkit.find()[0]
    assert found.include == [str(alone / "pip" / "cu13" / "include")]
    assert found.runtime == str(alone / "pip" / "cu13" / "lib" / "libcudart.so.13")


@pytest.mark.parametrize(
    ("version", "default"),
    [
        ("11.8", "8.0;9.0+PTX"),
        ("12.6", "8.0;9.0+PTX"),
        ("12.8", "8.0;9.0;10.0;12.0+PTX"),
        ("13.0", "8.0;9.0;10.0;12.0+PTX"),
        ("14.0", "8.0;9.0;10.0;12.0+PTX"),  # one that lists nothing
    ],
)
def test_without_a_gpu_for_what_nvcc_knows(alone, monkeypatch, version, default):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toolkit(alone / "system" / "cuda", version, ("include/cuda_runtime.h", "lib64/libcudart.so"))
    assert cuda_toolkit.find()[0].architectures == default


def test_for_the_gpus_that_are_here(alone, monkeypatch):
    toolkit(alone / "system" / "cuda", VERSION)
    found = cuda_toolkit.find()[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6), (12, 0)][index])
    assert found.architectures == "8.6;9.0+PTX"  # newer than torch knows: by the PTX
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (6, 1), (7, 5)][index])
    assert found.architectures == "9.0+PTX"  # nothing for what torch is too new for
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    assert found.architectures == found.default_architectures
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.9")
    assert found.architectures == "7.5 8.9"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
def test_a_true_nvcc_says_what_it_knows():
    """Any since CUDA 11.1 lists at least the oldest of the default."""
    nvcc = shutil.which("nvcc")
    home, version = cuda_toolkit._about(nvcc)
    default = cuda_toolkit.Toolkit(home, version, [], "").default_architectures
    assert default.startswith("8.0;")
    assert default.removesuffix("+PTX").endswith("12.0") == (tuple(map(int, version.split("."))) >= (12, 8))


def test_the_switch(alone, monkeypatch):
    assert build.toolkit()[0] is None
    monkeypatch.setenv("SSL_FAST_CUDA", "1")
    with pytest.raises(
        build.BuildError, match=r"SSL_FAST_CUDA=1, but the CUDA kernels cannot be compiled[^\0]*nvcc of"
    ):
        build.toolkit()
    toolkit(alone / "system" / "cuda", VERSION)
    assert build.toolkit()[0].version == VERSION
    monkeypatch.setenv("SSL_FAST_CUDA", "0")
    assert build.toolkit() == (None, ["nothing: SSL_FAST_CUDA=0 asks for none"])
    monkeypatch.setenv("SSL_FAST_CUDA", "yes")
    with pytest.raises(build.BuildError, match="SSL_FAST_CUDA: expected 0, 1 or nothing, got 'yes'"):
        build.toolkit()


def test_the_description_says_what_and_why_not(alone, monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    assert f"CUDA kernels: left out (Triton's take their place). Missing:\n  - nvcc of CUDA {VERSION}" in (
        build.description(ROOT / "csrc")
    )
    toolkit(alone / "system" / "cuda", VERSION)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert "CUDA kernels: by nvcc 13.0 for 9.0\n" in build.description(ROOT / "csrc")


@pytest.mark.long
def test_setup_fails_where_cuda_is_demanded(tmp_path):
    answer = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "SSL_FAST_CUDA": "1", "CUDA_HOME": str(tmp_path)},
    )  # fmt: skip
    assert answer.returncode != 0
    assert "error: SSL_FAST_CUDA=1, but the CUDA kernels cannot be compiled. Missing:" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.fixture
def built(monkeypatch):
    """An extension with CUDA kernels for these architectures, on a machine with GPUs of these capabilities."""

    def pretend(architectures, *capabilities):
        monkeypatch.setattr(loading, "extension", object())
        monkeypatch.setattr(loading, "record", {"cuda": {"version": VERSION, "architectures": architectures}})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(backends, "_chosen", {})
        return backends.why_not("ema_update_", "cuda", "cuda")

    return pretend


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0;9.0+PTX", (8, 0), True),
        ("8.0;9.0", (8, 9), True),  # later minor versions run it
        ("8.6;9.0", (8, 0), False),  # earlier ones do not
        ("8.0;9.0", (10, 0), False),
        ("8.0;9.0+PTX", (12, 1), True),
        ("9.0+PTX", (8, 0), False),
        ("7.5 8.6", (8, 9), True),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("Hopper", (9, 0), True),
    ],
)
def test_gpus_that_the_kernels_run_on(built, architectures, capability, runs):
    reason = built(architectures, capability)
    assert (reason == "") is runs
    if not runs:
        assert f"compiled for {architectures} and GPU 0 is {capability[0]}.{capability[1]}" in reason


def test_cuda_is_chosen_before_triton(built):
    built("9.0", (9, 0))
    assert backends.choose("ema_update_", "cuda") == backends.choose("enqueue_", "cuda") == "cuda"
    built("9.0", (8, 0), (9, 0))
    assert backends.choose("ema_update_", "cuda") == "triton"
    assert backends.choose("nt_xent", "cuda") == "triton"


def test_an_extension_without_them_says_why(built, monkeypatch):
    built("9.0")
    monkeypatch.setattr(loading, "record", {"cuda": None, "cuda_missing": ["nvcc of CUDA 13.0"]})
    reason = backends.why_not("ema_update_", "cuda", "cuda")
    assert reason == "the extension was built without CUDA kernels, missing nvcc of CUDA 13.0"


@pytest.mark.skipif(loading.extension is None, reason=f"the compiled extension is missing, {loading.why_missing}")
def test_the_record_is_of_this_extension():
    record = json.loads(loading.BUILD_RECORD.read_text())
    assert loading.record == record
    dispatched = torch._C._dispatch_has_kernel_for_dispatch_key
    for operator in ("ema_update_", "enqueue_"):
        assert dispatched(f"ssl_fast::{operator}", "CUDA") == bool(record["cuda"])
