"""The CPU engine's threads under ThreadSanitizer (make sanitize): thread_sanitizer/ has the stand-in and the calls."""

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "thread_sanitizer"
SOURCES = [path for path in sorted((ROOT / "csrc").rglob("*.cpp")) if path.parent.name != "cuda"]
SOURCES.remove(ROOT / "csrc" / "module.cpp")  # of the Python module; the operators register themselves


def runtime() -> str:
    """The compiler's library; empty where it has none."""
    if not shutil.which("g++"):
        return ""
    answer = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout.strip()
    return answer if Path(answer).is_absolute() else ""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not runtime(), reason="g++ has no ThreadSanitizer here"),
]


def run(*command) -> None:
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def compiled(source: Path, csrc: Path, folder: Path) -> Path:
    """The object file of a source; csrc: where its headers lie."""
    target = folder / f"{source.parent.name}-{source.stem}.o"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-fPIC", "-Wno-tsan"]
    system = [part for path in (*include_paths(), sysconfig.get_path("include")) for part in ("-isystem", path)]
    run("g++", *flags, f"-I{HERE}", f"-I{csrc}", *system, "-c", source, "-o", target)
    return target


def linked(objects: list[Path], folder: Path) -> Path:
    library = folder / "engine.so"
    found = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    run("g++", "-shared", "-fsanitize=thread", "-o", library, *objects, *found, "-ltorch", "-ltorch_cpu", "-lc10")
    return library


def driven(library: Path, *operator: str) -> subprocess.CompletedProcess:
    # Without random addresses: where the kernel's are too random ThreadSanitizer refuses to start.
    steady = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = {**os.environ, "LD_PRELOAD": runtime(), "TSAN_OPTIONS": "exitcode=66"}
    command = [*steady, sys.executable, str(HERE / "drive.py"), str(library), *operator]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compiled(source, ROOT / "csrc", folder), SOURCES))


def test_no_race(objects, tmp_path):
    answer = driven(linked(objects, tmp_path))
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-8000:]
    assert "ThreadSanitizer" not in answer.stderr
    for operator in torch_operators():
        assert answer.stdout.count(f"{operator} ") == 8  # types with their widths, and scales


def torch_operators() -> set[str]:
    """Every operator that the sources define for the CPU."""
    names = {name.removeprefix("ssl_fast::") for name in torch._C._dispatch_get_all_op_names() if "ssl_fast::" in name}
    return {name for name in names if not name.endswith("_backward") and not name.startswith("triton_")}


def test_a_race_is_reported(objects, tmp_path):
    """A block in two pairs of one round: two threads write to the same rows."""
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    header = csrc / "cpu" / "engine" / "block_schedule.h"
    correct = "(round + circle - seat) % circle"
    assert header.read_text().count(correct) == 1
    header.write_text(header.read_text().replace(correct, "(round + seat + 1) % circle"))
    broken = compiled(csrc / "cpu" / "nt_xent.cpp", csrc, tmp_path)
    others = [path for path in objects if path.name != broken.name]
    assert len(others) == len(objects) - 1
    # First: of templates that several objects hold, the linker takes the first.
    answer = driven(linked([broken, *others], tmp_path), "nt_xent")
    assert answer.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in answer.stderr
    assert "nt_xent.cpp" in answer.stderr or "simd" in answer.stderr
