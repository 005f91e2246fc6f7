"""The demo: one epoch writes everything, twice in a row."""

import json

import matplotlib.image
import pytest

from ssl_fast.train.commands import demo
from ssl_fast.train.commands.demo import LABELS
from tests.helpers.small_runs import limit_digits

ROWS = ["raw pixels", "untrained encoder", "SimCLR", "MoCo v2"]
COLUMNS = ["knn_clean", "knn_transformed", "probe_clean", "probe_transformed"]


def check_outputs(folder, printed):
    for name in ("curves.png", "pairs.png", "maps.png"):
        image = matplotlib.image.imread(folder / name)
        assert image.std() > 0.05, name  # something is drawn
    for method_name in LABELS:
        for name in ("last.pt", "best.pt", "config.yaml", "log.csv"):
            assert (folder / method_name / name).stat().st_size
    results = json.loads((folder / "results.json").read_text())
    assert list(results["accuracies"]) == ROWS
    for label, row in results["accuracies"].items():
        assert list(row) == COLUMNS
        line = next(line for line in printed.splitlines() if line.startswith(f"│ {label} "))
        assert [cell.strip() for cell in line.split("│")[2:-1]] == [f"{row[name]:.3f}" for name in COLUMNS]
    return results


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    limit_digits(monkeypatch, 260, 60)  # one batch of the recipes' 256

    def run_demo(**options):
        demo.demo(epochs=1, folder=tmp_path / "demo", **options)
        return check_outputs(tmp_path / "demo", capsys.readouterr().out)

    return run_demo


@pytest.mark.long
def test_demo_writes_everything_and_repeats(run):
    first, second = run(seed=3), run(seed=3)
    assert first["accuracies"] == second["accuracies"]
    pixels = first["accuracies"]["raw pixels"]
    assert pixels["knn_clean"] > pixels["knn_transformed"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trained_encoders_know_transformed_digits(tmp_path):
    demo.demo(folder=tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["accuracies"]
    for label in LABELS.values():
        assert rows[label]["knn_transformed"] >= 0.9
        assert rows[label]["knn_transformed"] > rows["raw pixels"]["knn_transformed"] + 0.3
        assert rows[label]["knn_transformed"] > rows["untrained encoder"]["knn_transformed"] + 0.3
