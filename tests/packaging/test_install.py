"""The package as users get it: from a wheel, from the sdist and editable, with and without the extension.

Each is installed into an environment of its own, which borrows torch from the environment of the
tests. pip's isolated builds fetch setuptools from the package index.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from ssl_fast.tools import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
EXTENSION = f"ssl_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
KERNELS = [
    f"ssl_fast/kernels/{path.relative_to(ROOT / 'kernels')}"
    for ending in ("py", "json")
    for path in (ROOT / "kernels").rglob(f"*.{ending}")
]
SOURCES = [f"ssl_fast/csrc/{path.relative_to(ROOT / 'csrc')}" for path in (ROOT / "csrc").rglob("*") if path.is_file()]

# Prints whether the extension is there and what nt_xent ran on, after importing every part.
LOOK = """
import json, torch, ssl_fast, ssl_fast.kernels
from ssl_fast.operators import backends, loading
z1, z2 = torch.randn(2, 6, 9)
assert torch.isclose(ssl_fast.functional.nt_xent(z1, z2), ssl_fast.reference.nt_xent(z1, z2))
files = [ssl_fast.__file__, ssl_fast.kernels.__file__]
print(json.dumps([*files, loading.why_missing, backends.choose("nt_xent", "cpu")]))
"""


def run(*command, cwd: Path, expected: int = 0, **environment) -> subprocess.CompletedProcess:
    # Nothing of the checkout or of the caller's choices may leak in.
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("SSL_FAST_")
    }
    answer = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert answer.returncode == expected, answer.stdout + answer.stderr
    return answer


def pip(*arguments, cwd: Path, **environment) -> subprocess.CompletedProcess:
    return run(sys.executable, "-m", "pip", *arguments, cwd=cwd, **environment)


class Environment:
    """A virtual environment without pip that sees the packages of the one that runs the tests."""

    def __init__(self, folder: Path):
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        purelib = Path(sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder}))
        # Folders named in a .pth file come last, and .pth files inside them are not read: an
        # editable installation of the tests' environment stays invisible.
        (purelib / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def install(self, *arguments, **environment) -> None:
        pip(
            *("--python", self.python, "install", "--ignore-installed", "--no-deps", *arguments),
            cwd=self.folder,
            **environment,
        )

    def look(self) -> list[str]:
        return json.loads(run(self.python, "-c", LOOK, cwd=self.folder).stdout)

    def command(self, *arguments, **options) -> subprocess.CompletedProcess:
        return run(self.folder / "bin" / "ssl-fast", *arguments, cwd=self.folder, **options)


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.fixture
def checkout(tmp_path):
    """The checkout as git has it: nothing compiled, nothing installed."""
    ignored = ("build", "dist", "runs", "data", "*.egg-info", "__pycache__", "_C*", ".[a-z]*")
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=shutil.ignore_patterns(*ignored)))


def wheel(source: Path, folder: Path, *options, **environment) -> Path:
    pip("wheel", "--no-deps", *options, "-w", folder, source, cwd=folder.parent, **environment)
    (result,) = folder.glob("*.whl")
    return result


def assert_holds(archive: Path, compiled: bool) -> None:
    names = set(zipfile.ZipFile(archive).namelist())
    assert {*KERNELS, *SOURCES, "ssl_fast/py.typed", "ssl_fast/reference/two_views.py", "ssl_fast/_C.pyi"} <= names
    assert [EXTENSION in names, f"ssl_fast/{build.RECORD}" in names] == [compiled, compiled]
    assert ("none-any" in archive.name) is not compiled


def test_sdist_to_pure_wheel_then_build(checkout, environment, tmp_path):
    """An isolated build cannot see the installed torch; `ssl-fast build` compiles for it afterwards."""
    make = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", make, tmp_path, cwd=checkout, SSL_FAST_NATIVE="0")
    (sdist,) = tmp_path.glob("*.tar.gz")
    pure = wheel(sdist, tmp_path / "wheels")
    assert_holds(pure, compiled=False)

    environment.install(pure)
    file, kernels, why_missing, chosen = environment.look()
    assert Path(file).is_relative_to(environment.folder)
    assert Path(kernels).is_relative_to(environment.folder)
    assert why_missing.startswith("it was not built")
    assert chosen == "reference"
    assert "missing: it was not built" in environment.command("doctor").stdout

    environment.command("build")
    assert environment.look()[2:] == ["", "cpu"]
    assert "is up to date" in environment.command("build").stdout
    assert not list(Path(file).parent.glob(".build-*"))
    assert "ok     nt_xent      on cpu   cpu " in environment.command("doctor").stdout


def test_wheel_of_this_torch(checkout, environment, tmp_path):
    compiled = wheel(checkout, tmp_path / "wheels", "--no-build-isolation", SSL_FAST_NATIVE="1")
    assert_holds(compiled, compiled=True)
    environment.install(compiled)
    file, kernels, *state = environment.look()
    assert Path(file).is_relative_to(environment.folder)
    assert Path(kernels).is_relative_to(environment.folder)
    assert state == ["", "cpu"]


def test_editable(checkout, environment):
    environment.install("--no-build-isolation", "-e", checkout, SSL_FAST_NATIVE="1")
    expected = [str(checkout / "ssl_fast" / "__init__.py"), str(checkout / "kernels" / "__init__.py"), "", "cpu"]
    assert environment.look() == expected
    # The same files serve another torch only after another build.
    record = checkout / "ssl_fast" / build.RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), "torch": "2.11.0+other"}))
    _, _, why_missing, chosen = environment.look()
    assert "built for torch 2.11.0+other" in why_missing
    assert chosen == "reference"


def test_without_compiler(checkout, environment, tmp_path):
    nowhere = {"CC": "/nowhere/gcc", "CXX": "/nowhere/g++"}
    pure = wheel(checkout, tmp_path / "wheels", "--no-build-isolation", **nowhere)
    assert_holds(pure, compiled=False)
    environment.install(pure)
    assert environment.look()[3] == "reference"
    assert "CXX=/nowhere/g++ is not there" in environment.command("build", expected=1, **nowhere).stderr


def test_compile_error_is_an_error_with_a_hint(checkout, tmp_path):
    """A compiler that is there and fails must not end in a slow package without a word."""
    shutil.rmtree(checkout / "csrc")
    (checkout / "csrc").mkdir()
    (checkout / "csrc" / "broken.cpp").write_text("int broken( {\n")
    command = ("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, checkout)
    output = pip(*command, cwd=tmp_path, expected=1)
    message = output.stdout + output.stderr
    assert "broken.cpp:1" in message
    assert "SSL_FAST_NATIVE=0 installs the package without the extension" in message
