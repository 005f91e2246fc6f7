"""Where libraries or a GPU are missing: tests are collected and skipped with a reason, benchmarks lose a figure."""

import json
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from bench import peers
from bench.gpu.processes import ROOT

# Peers


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(peers, "ABSENT", {})
    peers.installed.cache_clear()
    yield
    peers.installed.cache_clear()


@pytest.mark.usefixtures("nothing_known")
def test_a_missing_peer_is_a_word(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.delitem(sys.modules, "lightly.loss", raising=False)
    for _ in range(2):
        assert set(peers.nt_xent_peers(512, 0.1, compiled=False)) == {"eager"}
    assert peers.ABSENT == {"lightly": "lightly is not installed"}
    assert capsys.readouterr().err == "lightly is not installed: left out\n"


@pytest.mark.usefixtures("nothing_known")
def test_a_broken_peer_is_left_out(monkeypatch):
    def broken(**options):
        raise TypeError("another release")

    module = ModuleType("lightly.loss")
    module.NTXentLoss = broken
    monkeypatch.setitem(sys.modules, "lightly", ModuleType("lightly"))
    monkeypatch.setitem(sys.modules, "lightly.loss", module)
    assert set(peers.nt_xent_peers(512, 0.1, compiled=False)) == {"eager"}


def test_a_peer_that_fails_or_is_wrong_costs_its_figure(monkeypatch):
    losses = pytest.importorskip("bench.gpu.losses")
    monkeypatch.setattr("bench.gpu.timing.DRY", True)
    monkeypatch.setattr("bench.gpu.timing.DEVICE", "cpu")
    monkeypatch.setattr("bench.gpu.losses.DRY", True)
    rows = [torch.randn(4, 3, requires_grad=True)]
    both = {
        "ssl_fast": lambda x: x.pow(2).sum(),
        "wrong": lambda x: 1.1 * x.pow(2).sum(),
        "broken": lambda x: x.no_such_thing,
    }
    row = losses.row_of(both, rows, lambda: rows[0].double().pow(2).sum(), 1e-5, 8.0)
    assert set(row["milliseconds"]) == {"ssl_fast"}
    assert set(row["failed"]) == {"wrong", "broken"}
    assert "AttributeError" in row["failed"]["broken"]
    assert json.loads(json.dumps(row)) == row


# Collection where libraries are missing

FINDER = """
import sys

BLOCKED = {
    "PIL", "info_nce", "lightly", "lightning", "matplotlib", "onnx", "onnxscript", "open_clip",
    "pytorch_metric_learning", "rich", "safetensors", "sentence_transformers", "sklearn", "tensorboard", "timm",
    "tokenizers", "torchvision", "transformers", "tyro", "yaml",
}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
"""
FEW = ["tests/bench/test_peers.py", "tests/compat/test_compat_lightly.py", "tests/kernels/test_quick_gpu.py",
       "tests/train/evaluation/test_report.py", "tests/train/engine/test_device_step.py"]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "paths",
    [FEW, pytest.param(["tests"], marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["a few files", "all"],
)
def test_without_libraries_all_is_collected_and_skips_are_explained(paths, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FINDER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as if pytest-timeout were missing too
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qrs", "-p", "no:cacheprovider", "-m", ""]
    answer = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr
    assert "tests/bench/test_peers.py:0: lightly is not installed" in answer.stdout
    assert "tests/train/evaluation/test_report.py:0: matplotlib is not installed" in answer.stdout
    assert "test_each_loss_waits_for_nothing" in answer.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which these tests would run on")
def test_without_a_gpu_every_gpu_test_is_skipped():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-3000:]
    last = answer.stdout.splitlines()[-1]
    assert "skipped" in last
    assert "passed" not in last
