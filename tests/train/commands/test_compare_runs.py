"""`ssl-fast compare` as a user types it, on folders such as ssl-fast train writes."""

import matplotlib.image
import pytest
import yaml

from ssl_fast.train.commands import compare
from ssl_fast.train.evaluation import plots

CONFIG = {"recipe": "simclr-small", "data": "digits", "seed": 0, "temperature": 0.1, "view1": {"order": ["crop"]}}
COLUMNS = "epoch,learning_rate,momentum,loss,top1,knn_clean,knn_transformed,probe_clean,alignment,uniformity"
LOG = f"{COLUMNS},images_per_second\n1,.1,,4.5,.25,.5,.375,,,,9\n2,.1,,3.5,.5,,,,,,9\n3,.1,,3.75,.75,.4375,.625,,,,9\n"


def write_run(folder, log=LOG, **changes):
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text(log)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    return str(folder)


def printed_rows(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_two_runs(tmp_path, capsys, monkeypatch):
    shown = []
    curves = plots.curves
    monkeypatch.setattr(plots, "curves", lambda *arguments: shown.append(arguments) or curves(*arguments))
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", temperature=0.5, view1={"order": ["flip"]})]
    picture = tmp_path / "new" / "both.png"
    assert compare.main([*runs, "--output", str(picture)]) == 0
    histories, _ = shown[0]
    assert list(histories) == ["a (temperature 0.1, view1.order ['crop'])", "b (temperature 0.5, view1.order ['flip'])"]
    first = histories["a (temperature 0.1, view1.order ['crop'])"]
    assert [row["loss"] for row in first] == [4.5, 3.5, 3.75]
    assert [row["knn_clean"] for row in first] == [0.5, None, 0.4375]
    assert matplotlib.image.imread(picture).std() > 0.05
    text = capsys.readouterr().out
    rows = printed_rows(text)
    # The least loss and the most accuracy are best.
    assert rows[:3] == [["epochs", "3", "3"], ["loss", *["3.750"] * 2], ["loss, best (epoch)", *["3.500 (2)"] * 2]]
    assert ["knn_clean", "0.438", "0.438"] in rows
    assert ["knn_clean, best (epoch)", "0.500 (1)", "0.500 (1)"] in rows
    assert ["top1, best (epoch)", "0.750 (3)", "0.750 (3)"] in rows
    assert not any(row[0].startswith(("probe", "uniformity")) for row in rows)  # never measured
    assert ["temperature", "0.1", "0.5"] in rows
    assert ["view1.order", "['crop']", "['flip']"] in rows
    assert not any(row[0] in ("seed", "recipe") for row in rows)
    assert text.splitlines()[-1] == str(picture)


def test_the_picture_has_a_name_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare.main([write_run(tmp_path / "a")]) == 0
    assert (tmp_path / "compare.png").stat().st_size
    assert "settings that differ" not in capsys.readouterr().out


def test_a_run_without_config_and_with_few_columns(tmp_path, capsys):
    whole, bare = write_run(tmp_path / "whole"), tmp_path / "bare"
    bare.mkdir()
    (bare / "log.csv").write_text("loss,top1\n2.5,\n1.5\n")
    assert compare.read_log(bare) == [{"epoch": 1, "loss": 2.5, "top1": None}, {"epoch": 2, "loss": 1.5, "top1": None}]
    assert compare.main([whole, str(bare), "--output", str(tmp_path / "x.png")]) == 0
    rows = printed_rows(capsys.readouterr().out)
    assert ["epochs", "3", "2"] in rows
    assert ["loss", "3.750", "1.500"] in rows
    assert ["top1", "0.750", "–"] in rows
    assert ["top1, best (epoch)", "0.750 (3)", "–"] in rows
    assert ["seed", "0", "–"] in rows


def test_best_of_alignment_and_uniformity_is_the_lowest(tmp_path, capsys):
    run = write_run(tmp_path / "a", "epoch,alignment,uniformity\n1,.25,-3\n2,.5,-2\n")
    assert compare.main([run, "--output", str(tmp_path / "x.png")]) == 0
    rows = printed_rows(capsys.readouterr().out)
    assert ["alignment, best (epoch)", "0.250 (1)"] in rows
    assert ["uniformity, best (epoch)", "-3.000 (1)"] in rows
    assert ["uniformity", "-2.000"] in rows


@pytest.mark.long
def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path, capsys):
    runs = [write_run(tmp_path / parent / "run") for parent in ("x", "y")]
    assert compare.main([*runs, "--output", str(tmp_path / "z.png")]) == 0
    heading = next(line for line in capsys.readouterr().out.splitlines() if "measured" in line)
    assert [cell.strip() for cell in heading.split("┃")[2:-1]] == ["x/run", "y/run"]


def test_labels_are_short():
    assert compare.labels({"a": {}, "b": {}}) == ["a", "b"]
    first = {"versions.torch": "2.11", "long": "x" * 25, "own": 1, "lr": 0.1, "wd": 0.2, "seed": 1, "epochs": 9}
    second = {"versions.torch": "2.12", "long": "y", "lr": 0.3, "wd": 0.4, "seed": 2, "epochs": 8}
    assert compare.labels({"a": first, "b": second}) == ["a (lr 0.1, wd 0.2, seed 1)", "b (lr 0.3, wd 0.4, seed 2)"]


def test_differing_fields():
    configs = {"a": {"x": 1, "y": 2, "z": 3}, "b": {"x": 1, "y": 4}, "c": {"x": 1, "y": 2, "z": 3}}
    assert compare.differing(configs) == {"a": {"y": 2, "z": 3}, "b": {"y": 4}, "c": {"y": 2, "z": 3}}


def test_names_that_look_like_markup(tmp_path, capsys):
    run = write_run(tmp_path / "[red]run")
    other = write_run(tmp_path / "other", data="[bold]")
    assert compare.main([run, other, "--output", str(tmp_path / "x.png")]) == 0
    text = capsys.readouterr().out
    assert "[red]run" in text
    assert "[bold]" in text


def user_error(arguments, capsys):
    capsys.readouterr()
    assert compare.main(arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("ssl-fast compare: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_missing_folder_and_log(tmp_path, capsys):
    good = write_run(tmp_path / "good")
    picture = tmp_path / "x.png"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compare.read_log(tmp_path / "nowhere")
    message = user_error([good, str(tmp_path / "nowhere"), "--output", str(picture)], capsys)
    assert f"{tmp_path}/nowhere: expected the folder of a run" in message
    (tmp_path / "empty").mkdir()
    message = user_error([good, str(tmp_path / "empty"), "--output", str(picture)], capsys)
    assert f"{tmp_path}/empty/log.csv: no such log" in message
    assert not picture.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("log.csv", "", "log.csv: expected at least one epoch, got none"),
        ("log.csv", "epoch,loss\n", "log.csv: expected at least one epoch, got none"),
        ("log.csv", "epoch,loss\n1,2\n2,low\n", "log.csv: expected a number in loss of row 2, got 'low'"),
        ("log.csv", "epoch,loss\n1,2,3\n", "log.csv: expected a number"),
        ("log.csv", "epoch,loss\n1,\n", "histories: expected rows with some of loss"),
        ("log.csv", b"\xff\xfe", "log.csv: expected a log in CSV"),
        ("config.yaml", "a: [", "config.yaml: expected YAML"),
        ("config.yaml", "- a", "config.yaml: expected names and values, got list"),
    ],
)
def test_damaged_files(file, content, message, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in user_error([run, "--output", str(tmp_path / "x.png")], capsys)


def test_no_run_and_one_twice(tmp_path, capsys):
    assert "RUN: expected a folder" in user_error([], capsys)
    run = write_run(tmp_path / "run")
    assert "RUN: expected different folders" in user_error([run, f"{run}/../run"], capsys)
