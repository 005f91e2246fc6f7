"""What setup.py and `ssl-fast build` decide, without compiling anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_fast.tools import build

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++ -pipe")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of one source file, that claims to be compiled."""
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setenv("CXX", sys.executable)  # anything that is there and answers --version
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "csrc" / "cpu" / "loss.cpp").write_text("int loss;\n")
    build.binary().write_bytes(b"")
    build.write_record(tmp_path, build.record(build.csrc_folder()))
    return tmp_path


@pytest.mark.parametrize(("value", "expected"), [("", None), ("0", False), ("1", True)])
def test_switch(value, expected):
    assert build.switch({"SSL_FAST_NATIVE": value}) is expected
    assert build.switch({}) is None


def test_switch_refuses_other_values():
    with pytest.raises(build.BuildError, match="SSL_FAST_NATIVE: expected 0, 1 or nothing, got 'yes'"):
        build.switch({"SSL_FAST_NATIVE": "yes"})


def test_missing_compiler_is_named(no_compiler):
    assert any("CXX=/nowhere/g++ -pipe is not there" in what for what in build.missing(CSRC))


def test_no_compiler_at_all_says_what_to_install(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert any("install g++ or set CXX" in what for what in build.missing(CSRC))


def test_compiler_may_carry_options(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -E")
    assert build.compiler() == [sys.executable, "-E"]


@pytest.mark.parametrize(("version", "accepted"), [("2.9.1", False), ("2.10.0+cpu", False), ("2.11.0+cpu", True)])
def test_old_torch_is_refused(monkeypatch, version, accepted):
    monkeypatch.setattr(torch, "__version__", version)
    assert any(f"torch is {version}" in what for what in build.missing(CSRC)) is not accepted


def test_invisible_torch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert any("--no-build-isolation" in what and "`ssl-fast build`" in what for what in build.missing(CSRC))


def test_missing_python_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert any("Python.h" in what for what in build.missing(CSRC))


def test_missing_sources_are_named(tmp_path):
    more = set(build.missing(tmp_path)) - set(build.missing(CSRC))
    assert more == {f"the C++ sources: {tmp_path} holds none"}


def test_oldest_torch_is_the_one_that_pip_requires():
    assert f'"torch>={build.OLDEST_TORCH}"' in (ROOT / "pyproject.toml").read_text()


def test_every_source_is_compiled_and_shipped():
    """A file in a new folder, or with a new ending, must not be forgotten."""
    compiled = {path for pattern in build.SOURCES for path in CSRC.glob(pattern)}
    assert compiled == {path for path in CSRC.rglob("*.cpp") if "cuda" not in path.parts}
    shipped = {path for pattern in build.SHIPPED for path in CSRC.glob(pattern)}
    assert shipped == {path for path in CSRC.rglob("*") if path.is_file()}


def setup_py(**environment) -> subprocess.CompletedProcess:
    """Runs setup.py far enough to decide; --name builds nothing."""
    return subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, "CXX": "/nowhere/g++", **environment},
        capture_output=True,
        text=True,
    )


def test_setup_without_compiler_makes_the_pure_package_and_says_so():
    answer = setup_py(SSL_FAST_NATIVE="")
    assert answer.returncode == 0
    assert answer.stdout.strip() == "ssl-fast"
    assert "CXX=/nowhere/g++ is not there" in answer.stderr
    assert "`ssl-fast build` compiles the extension" in answer.stderr


def test_setup_fails_where_the_extension_is_demanded():
    answer = setup_py(SSL_FAST_NATIVE="1")
    assert answer.returncode != 0
    assert "error: SSL_FAST_NATIVE=1, but the extension cannot be compiled" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_setup_asks_nothing_where_the_extension_is_declined():
    answer = setup_py(SSL_FAST_NATIVE="0")
    assert (answer.returncode, answer.stderr) == (0, "")


def test_up_to_date_package_is_left_alone(package, capsys):
    before = build.binary().stat()
    assert build.main([]) == 0
    assert "is up to date" in capsys.readouterr().out
    assert build.binary().stat() == before


@pytest.mark.parametrize("change", ["torch", "flags", "source", "binary", "record"])
def test_whatever_changes_makes_it_stale(package, monkeypatch, change):
    assert build.is_current()
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "2.11.0")
    elif change == "flags":
        monkeypatch.setattr(build, "FLAGS", ("-O0",))
    elif change == "source":
        (package / "csrc" / "cpu" / "loss.cpp").write_text("int other;\n")
    elif change == "binary":
        build.binary().unlink()
    else:
        (package / build.RECORD).write_text("{")
    assert not build.is_current()


def test_build_without_compiler_changes_nothing(package, no_compiler, capsys):
    before = json.loads((package / build.RECORD).read_text())
    assert build.main(["--force"]) == 1
    assert "CXX=/nowhere/g++ -pipe is not there" in capsys.readouterr().err
    assert json.loads((package / build.RECORD).read_text()) == before
    assert build.binary().is_file()


def test_build_into_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    # A file where the folder should be: permissions do not stop root.
    (tmp_path / "package").write_text("")
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(build, "missing", lambda csrc: [])
    assert build.main(["--force"]) == 1
    assert f"cannot write to {tmp_path / 'package'}" in capsys.readouterr().err
