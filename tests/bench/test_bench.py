"""Every suite of the benchmark once at its smallest, so that none rots; figures are not judged here."""

import json

import pytest
import torch

from bench import __main__ as command
from bench import measure, report, suites
from bench.suites import SUITES
from bench.work import Work

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_runs_and_is_reported(name, tmp_path, capsys):
    works = SUITES[name](True)
    rows = []
    limits = {"sgemm": 1e11, "copy": 1e10}
    for work in works:
        work.memory = None  # test_memory.py measures it
        rows.append(measure.measured(work, limits, 1, 0.001))
        if len(rows) == 3:
            break
    works.close()
    about = {"processor": "none", "threads": "1", "torch": "0", "commit": "0", "date": "today"}
    report.show(rows, about, limits)
    printed = capsys.readouterr().out
    assert rows[0]["name"].split()[0] in printed
    report.save(rows, about, limits, tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["rows"] == json.loads(json.dumps(rows))
    assert (tmp_path / "nt_xent.png").exists() == (name == "losses")
    for row in rows:
        assert row["median"]["ssl_fast"] > 0
        assert row["quantile20"]["ssl_fast"] <= row["median"]["ssl_fast"] <= row["quantile80"]["ssl_fast"]


def test_a_wrong_loss_is_not_timed(monkeypatch):
    good = suites.peers.eager_nt_xent
    monkeypatch.setattr(suites.peers, "eager_nt_xent", lambda z1, z2, temperature: 1.001 * good(z1, z2, temperature))
    with pytest.raises(AssertionError, match="eager gives"):
        next(suites.nt_xent(True))


def test_growth_is_the_exponent():
    rows = [
        {"suite": "x", "about": {"D": 128}, "size": n, "median": {"ssl_fast": 3e-9 * n**2}, "memory": 7 * n}
        for n in (64, 256, 1024, 4096)
    ]
    assert report.growth(rows) == {"x": pytest.approx((2.0, 1.0))}


def test_a_work_keeps_its_own_thread_count():
    threads = []
    work = Work("x", "x", 1, {"ssl_fast": lambda: threads.append(torch.get_num_threads())}, threads=1)
    row = measure.measured(work, {"sgemm": 1.0, "copy": 1.0}, 2, 0.001)
    assert set(threads) == {1}
    assert row["about"]["threads"] == 1


def test_unknown_suites_are_refused(monkeypatch, capsys):
    for arguments, message in ((["losse"], "expected one of losses"), (["--threads", "0"], "--threads: expected")):
        monkeypatch.setattr("sys.argv", ["bench", *arguments])
        with pytest.raises(SystemExit):
            command.main()
        assert message in capsys.readouterr().err


def test_the_model_of_a_tile():
    """A 128 x 128 tile of bfloat16 at D=128, by hand: FLOP and exponentials over an H100's rates a clock."""
    pytest.importorskip("triton", reason="triton is not installed")
    from ssl_fast.kernels.tuning import model
    from ssl_fast.kernels.tuning.table import Tile

    tile = Tile(128, 128, 64, 8, 3)
    cost = model.cost("symmetric_tiles", tile, 128, "half", model.H100)
    assert cost.products == 2 * 128**3 / 4096
    assert cost.exponentials == 128 * 128 / 16
    assert cost.clocks(2) == max(cost)
    assert cost.clocks(1) > cost.clocks(2)
    assert model.cost("weighted_rows", tile, 128, "half", model.H100).products == 2 * cost.products
    # All similarities of 8192 rows: twice the tiles, twice the time.
    once, twice = (
        model.seconds("symmetric_tiles", tile, 128, "half", model.H100, similarities, 2) for similarities in (1e6, 2e6)
    )
    assert twice == pytest.approx(2 * once)


def test_every_entry_of_the_tile_table_is_a_candidate():
    pytest.importorskip("triton", reason="triton is not installed")
    from bench import tune
    from ssl_fast.kernels.tuning import table

    for name, kinds in table.rows().items():
        assert set(kinds) == set(tune.KINDS)
        for kind, kernels in kinds.items():
            assert set(kernels) == set(tune.KERNELS)
            for kernel, widths in kernels.items():
                for width, entry in widths.items():
                    tile = table.Tile(*entry)
                    assert tile.rows == tile.columns or kernel != "symmetric_tiles"
                    assert name == "interpreter" or tile in tune.candidates(kernel, kind, int(width)), (name, kernel)
