"""The package without a usable extension: a warning, a reason, and the reference."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import ssl_fast
from ssl_fast.operators import loading

EXTENSION = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.fixture
def bare(tmp_path):
    """A copy of the package that was never compiled; gives the folder to put on the path."""
    shutil.copytree(
        Path(ssl_fast.__file__).parent,
        tmp_path / "ssl_fast",
        ignore=shutil.ignore_patterns("_C*", "__pycache__", ".build-*"),
    )
    return tmp_path


def python(folder: Path, code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_missing_extension_warns_once_and_runs_the_reference(bare):
    answer = python(
        bare,
        "import ssl_fast, ssl_fast.functional, torch\n"
        "from ssl_fast.operators import backends\n"
        "z = torch.eye(4)\n"
        "assert ssl_fast.functional.nt_xent(z, z) == ssl_fast.reference.nt_xent(z, z)\n"
        "print(backends.choose('nt_xent', 'cpu'))",
        SSL_FAST_BACKEND="auto",
    )
    assert answer.stdout.strip() == "reference", answer.stderr
    assert answer.stderr.count("RuntimeWarning: ssl_fast runs its plain PyTorch reference") == 1
    assert "`ssl-fast build` compiles it" in answer.stderr


@pytest.mark.long
def test_asking_for_the_missing_extension_is_an_error(bare):
    answer = python(
        bare,
        "import ssl_fast, torch\nwith ssl_fast.backend('cpu'): ssl_fast.functional.nt_xent(torch.eye(4), torch.eye(4))",
    )
    assert answer.returncode != 0
    assert "ValueError: backend 'cpu' cannot run nt_xent: the compiled extension is missing" in answer.stderr


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Where the record of the extension is looked for; nothing is there yet."""
    monkeypatch.setattr(loading, "BUILD_RECORD", tmp_path / "_C.json")
    return loading.BUILD_RECORD


def test_extension_of_another_torch_is_not_loaded(record):
    record.write_text(json.dumps({"torch": "2.11.0+other"}))
    assert loading._load() == (None, f"it was built for torch 2.11.0+other and this is torch {torch.__version__}")


def test_extension_without_record_is_not_loaded(record):
    extension, why = loading._load()
    assert extension is None
    assert why.startswith("it was not built")


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_unreadable_record_is_a_reason(record, text):
    record.write_text(text)
    extension, why = loading._load()
    assert extension is None
    assert why.startswith("_C.json cannot be read")


@pytest.mark.long
def test_broken_binary_is_a_reason(bare):
    (bare / "ssl_fast" / EXTENSION).write_bytes(b"not a library")
    (bare / "ssl_fast" / "_C.json").write_text(json.dumps({"torch": torch.__version__}))
    answer = python(bare, "from ssl_fast.operators import loading; print(loading.extension, loading.why_missing)")
    assert answer.stdout.startswith("None loading it failed: "), answer.stderr


@pytest.mark.long
def test_unknown_backend_in_the_environment_is_an_error(bare):
    program = "import torch, ssl_fast; ssl_fast.functional.nt_xent(*torch.randn(2, 4, 3))"
    answer = python(bare, program, SSL_FAST_BACKEND="banana")
    assert answer.returncode != 0
    assert (
        "ValueError: SSL_FAST_BACKEND: expected one of reference, cpu, triton, cuda, auto; got 'banana'"
        in answer.stderr
    )
