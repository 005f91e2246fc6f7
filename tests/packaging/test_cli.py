"""The command `ssl-fast` and its doctor."""

import os
import subprocess
import sys

import pytest
import torch

import ssl_fast
from ssl_fast.operators import backends
from ssl_fast.tools import cli, doctor


def ssl_fast_command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SSL_FAST_BACKEND": "auto"}
    return subprocess.run(
        [sys.executable, "-m", "ssl_fast", *arguments], env=environment, capture_output=True, text=True
    )


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for command in ("train", "eval", "doctor", "build"):
        assert any(line.startswith(f"  {command} ") for line in lines)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ssl_fast {ssl_fast.__version__}\n"


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "build"])
def test_options_reach_the_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: ssl-fast {command}" in capsys.readouterr().out


def missing_module(name: str):
    def run(arguments):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return run


def test_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "train", (missing_module("lightning"), "", "train"))
    assert cli.main(["train", "simclr"]) == 1
    expected = "ssl-fast train needs lightning, which is not installed: pip install 'ssl-fast[train]'\n"
    assert capsys.readouterr().err == expected


def test_missing_part_of_ours_is_not_called_an_extra(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "train", (missing_module("ssl_fast.train"), "", "train"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_doctor_passes_and_reports():
    answer = ssl_fast_command("doctor")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"torch      {torch.__version__}\n" in answer.stdout
    assert "FAILED" not in answer.stdout
    for operator in backends.IMPLEMENTATIONS:
        assert f"  ok     {operator:19} on cpu   reference" in answer.stdout
        assert f"  {operator:19} on cpu   {backends.choose(operator, 'cpu')}\n" in answer.stdout


def test_doctor_knows_every_operator():
    assert doctor.CHECKS.keys() == backends.IMPLEMENTATIONS.keys()


@pytest.mark.parametrize("factor", [1.00001, float("nan"), float("inf")])
def test_doctor_sees_a_wrong_loss(monkeypatch, capsys, factor):
    right = doctor.functional.nt_xent

    def wrong(z1, z2):
        loss = right(z1, z2)
        return loss if loss.dtype == torch.float64 else loss + (loss * factor - loss).detach()

    monkeypatch.setattr(doctor.functional, "nt_xent", wrong)
    assert doctor.main([]) == 1
    assert "FAILED nt_xent" in capsys.readouterr().out


def test_doctor_sees_one_wrong_gradient_of_many(monkeypatch):
    right = doctor.functional.info_nce

    def wrong(query, positive, negatives):
        loss = right(query, positive, negatives)
        if loss.dtype == torch.float32 and isinstance(negatives, torch.Tensor) and negatives.dim() == 3:
            return loss + 1e-4 * (negatives - negatives.detach()).sum()
        return loss

    monkeypatch.setattr(doctor.functional, "info_nce", wrong)
    passed, text = doctor.check("info_nce", "reference", "cpu")
    assert not passed, text


def test_doctor_goes_on_after_a_crash(monkeypatch, capsys):
    def crash(target, source, momentum):
        if target[0].dtype == torch.float32:
            raise RuntimeError("illegal instruction")

    monkeypatch.setattr(doctor, "ema_update_", crash)
    assert doctor.main([]) == 1
    report = capsys.readouterr().out
    assert "RuntimeError: illegal instruction" in report
    assert "ok     enqueue_" in report


def test_doctor_shows_a_backend_that_cannot_run(monkeypatch, capsys):
    monkeypatch.setattr(backends, "_requested", "cuda")
    assert doctor.main([]) == 0
    assert "nt_xent             on cpu   none (backend 'cuda' cannot run nt_xent: " in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("variable", ["SSL_FAST_BACKEND", "SSL_FAST_SIMD"])
def test_doctor_with_an_unknown_choice_says_so_without_a_traceback(variable):
    command = [sys.executable, "-m", "ssl_fast", "doctor"]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, variable: "foo"})
    printed = answer.stdout + answer.stderr
    assert f"{variable}: expected one of" in printed
    assert "Traceback" not in printed
