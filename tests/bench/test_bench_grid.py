"""The grid of losses by rows and width at its smallest, so that it does not rot; figures are not judged here."""

import json

import pytest
import torch

from bench import __main__ as command
from bench import composed, grid, measure
from bench.work import in_float64, verified

MACHINE = {"processor": "none", "simd": "plain", "torch": "0", "commit": "0", "date": "today"}
LIMITS = {"2": {"sgemm": 9e10, "tile": {"64": 8e10}}}


def row(loss, rows, dim, **seconds):
    about = {"loss": loss, "N": rows, "D": dim, "threads": 2}
    return {"suite": "grid", "about": about, "median": seconds, "why": "" if seconds else "too long"}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "limits", lambda threads: {"sgemm": 9e10, "copy": 1e10})
    monkeypatch.setattr(measure, "sgemm", lambda *_: 8e10)
    return ["grid", "--rows=4", "--dims=64", "--threads=1", "--seconds=0", f"--output={tmp_path}"]


@pytest.mark.long
def test_the_command_writes_its_tables_and_figures(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", *arguments, "--rows", "4", "999", "--memory=1e6", "--losses", "SigLIP"])
    command.main()
    (folder,) = tmp_path.iterdir()
    saved = json.loads((folder / "results.json").read_text())
    assert folder.name == saved["machine"]["simd"]
    found, left_out = saved["rows"]
    assert found["median"].keys() == {"ssl_fast", "eager", "open_clip"}
    assert found["about"] == {"loss": "SigLIP", "N": 4, "D": 64, "threads": 1}
    assert left_out["median"] == {}
    text = (folder / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert "2048 x 2048 x 2048 90, one tile of 192 x 192 x 64 80" in text
    assert "- SigLIP, N = 999, D = 64, threads 1: plain PyTorch would store 0.018 GB" in text
    assert (folder / "ratios-1-threads.png").stat().st_size > 5000


@pytest.mark.parametrize("name", grid.LOSSES)
def test_every_peer_gives_the_float64_truth(name):
    inputs, losses = grid.LOSSES[name].make(32, 48)
    truth = in_float64(losses["eager"], inputs)
    assert truth.dtype == torch.float64
    verified(losses, truth, tuple(inputs))
    assert len(losses) > 1
    assert sum(x.numel() for x in inputs) - composed.BANK * 48 * (name in ("InfoNCE, queue", "instances")) == (
        grid.LOSSES[name].inputs * 32 * 48
    )


def test_the_page_names_what_is_slow():
    rows = [
        row("CLIP", 32, 64, ssl_fast=2e-3, eager=3e-3, open_clip=1e-3),
        row("CLIP", 64, 64, ssl_fast=1e-3, eager=1.1e-3),
        row("CLIP", 128, 64, ssl_fast=1e-3, eager=1.15e-3),
        row("CLIP", 256, 64, ssl_fast=1e-3, eager=4e-3),
        row("CLIP", 512, 64),
    ]
    text = grid.markdown({"machine": MACHINE, "limits": LIMITS, "rows": rows})
    assert "| 2 | 4 | 50% | 75% | 0.50 | 1 |" in text
    below, near = text.partition("## Cells below 1: 1")[2].split("## Cells from 1 to 1.15: 1")
    assert "| CLIP | 32 | 64 | 2 | 2 | open_clip | 1 | 0.50 |" in below
    assert "| CLIP | 64 | 64 | 2 | 1 | eager | 1.1 | 1.10 |" in near
    assert "| CLIP | 128 |" not in text
    assert "- CLIP, N = 512, D = 64, threads 2: too long" in text


def test_what_would_not_fit_is_left_out():
    options = grid._parsed(["--memory", "1e9", "--longest", "0.5"])
    case = grid.LOSSES["NT-Xent"]
    assert grid._left_out(case, 2048, 128, 1e11, options) == ""
    assert grid._left_out(case, 4096, 128, 1e11, options) == "plain PyTorch would store 1.1 GB"
    assert grid._left_out(case, 2048, 768, 1e11, options) == "plain PyTorch's products would take 0.77 s"


def test_each_level_has_its_process(arguments, monkeypatch):
    calls = []
    monkeypatch.setattr(grid.subprocess, "run", lambda command, **options: calls.append((command, options["env"])))
    monkeypatch.delenv("SSL_FAST_SIMD", raising=False)
    grid.main([*arguments[1:], "--levels", "plain", "avx2"])
    assert [environment["SSL_FAST_SIMD"] for _, environment in calls] == ["plain", "avx2"]
    for (called, environment), level in zip(calls, ("plain", "avx2"), strict=True):
        # The last --levels counts: the process measures its own level and starts no further one.
        assert grid._parsed(called[4:]).levels == [level] == [environment["SSL_FAST_SIMD"]]


def test_unknown_losses_are_refused(capsys):
    with pytest.raises(SystemExit):
        grid.main(["--losses", "CLIPS"])
    assert "invalid choice: 'CLIPS'" in capsys.readouterr().err
