"""The comparison with the libraries at its smallest sizes, so that it does not rot; figures are not judged here."""

import json

import pytest

from bench import __main__ as command
from bench import compat


@pytest.mark.long
def test_the_command_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compat.measure, "limits", lambda threads: {"sgemm": 1.0, "copy": 1.0})
    monkeypatch.setattr(
        compat.measure, "interleaved", lambda runs, *_: {name: [run() or 1e-3] for name, run in runs.items()}
    )
    arguments = ["compat", "lightly", "info_nce", "pytorch_metric_learning", "--quick", f"--output={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    command.main()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["machine"]["lightly"]
    assert {row["library"] for row in saved["rows"]} == {"lightly", "info_nce", "pytorch_metric_learning"}
    assert all(row["seconds"]["theirs"] and row["seconds"]["ours"] for row in saved["rows"])
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert "| lightly | NTXentLoss | 256 images, D = 128 | 1 | 1 | 1.0 |" in text


def test_theirs_is_left_out_where_it_would_not_fit(monkeypatch):
    case = next(case for case in compat.CASES if case.why)
    monkeypatch.setattr(
        compat.measure, "interleaved", lambda runs, *_: {name: [run() or 1e-3] for name, run in runs.items()}
    )
    row = compat.measured(case, case.largest + 8, 1, 0.1, False)
    assert row["seconds"]["theirs"] is None
    assert row["why"] == case.why


@pytest.mark.parametrize("case", compat.CASES, ids=lambda case: f"{case.library} {case.names}: {case.work}")
def test_both_lines_give_the_same(case, monkeypatch):
    losses = {}
    for ours in (True, False):
        monkeypatch.setattr(
            compat, "PREAMBLE", compat.PREAMBLE.replace("loss(*inputs).backward()", "return loss(*inputs)")
        )
        losses[ours] = case.step(ours, 8)().item()
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_user_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "compat", "colour"])
    with pytest.raises(SystemExit):
        command.main()
    assert "LIBRARY: expected one of lightly, " in capsys.readouterr().err
