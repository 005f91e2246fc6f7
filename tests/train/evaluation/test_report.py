"""The accuracies that a report holds are those of its parts; its table, its file, and the pictures."""

import dataclasses
import io
import json

import matplotlib.colors
import matplotlib.image
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from ssl_fast.train.data import Dataset, FolderDataset, batch_augmentation
from ssl_fast.train.data.batches import Batches
from ssl_fast.train.evaluation import metrics, plots, report
from ssl_fast.train.evaluation.features import encode
from ssl_fast.train.recipes import View


def stripes(rows, seed):
    """Images (rows, 1, 10, 10): the label is the bright row; and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 5
    images = torch.randint(0, 106, (rows, 1, 10, 10), generator=generator)
    images[torch.arange(rows), 0, 2 * labels] += 60
    return images.to(torch.uint8), labels


@pytest.fixture
def dataset():
    (train_images, train_labels), (test_images, test_labels) = stripes(200, 0), stripes(90, 1)
    arrays = (train_images, train_labels, test_images, test_labels)
    return Dataset("stripes", *arrays, image_size=10, flip=True, mean=(0.2,), std=(0.3,))


def encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())


def expected_features(model, dataset, normalize):
    prepare = batch_augmentation.Augment(dataset, View(), normalize)
    kinds = {"train": prepare.plain(dataset.train_images), "clean": prepare.plain(dataset.test_images)}
    return {kind: encode(model, images) for kind, images in kinds.items()}


@pytest.mark.parametrize("normalize", [False, True])
def test_the_numbers_are_those_of_the_parts(dataset, normalize):
    model = encoder()
    found = expected_features(model, dataset, normalize)
    train, clean = (found["train"], dataset.train_labels), (found["clean"], dataset.test_labels)
    results = report.accuracies(model, dataset, normalize, "cpu", measures=report.MEASURES)
    names = ["knn_clean", "knn_transformed", "probe_clean", "probe_transformed", "probe_1%", "probe_10%"]
    assert list(results) == [*names, "alignment", "uniformity"]
    assert results["knn_clean"] == metrics.knn_accuracy(*train, *clean, k=20)
    assert results["probe_clean"] == metrics.logistic_regression_accuracy(*train, *clean)
    assert results["uniformity"] == pytest.approx(metrics.uniformity(clean[0]))
    prepare = batch_augmentation.Augment(dataset, View(), normalize)
    images = prepare.transform_test(dataset.test_images, torch.Generator().manual_seed(0))
    transformed = encode(model, images), dataset.test_labels
    assert results["knn_transformed"] == metrics.knn_accuracy(*train, *transformed, k=20)
    assert results["probe_transformed"] == metrics.logistic_regression_accuracy(*train, *transformed)
    assert results["knn_clean"] > results["knn_transformed"]
    assert results["probe_clean"] > results["probe_transformed"]
    for name, fraction, count in (("probe_1%", 0.01, 5), ("probe_10%", 0.1, 20)):
        rows = metrics.label_fraction(train[1], fraction)
        assert len(rows) == count
        assert results[name] == metrics.logistic_regression_accuracy(train[0][rows], train[1][rows], *clean)
    assert results["probe_1%"] < results["probe_10%"]


def test_the_present_keys_without_asking(dataset):
    results = report.accuracies(encoder(), dataset, False, "cpu")
    assert list(results) == ["knn_clean", "knn_transformed", "probe_clean", "probe_transformed"]
    assert results == report.accuracies(encoder(), dataset, False, "cpu")  # the same transformed images
    assert list(report.accuracies(encoder(), dataset, False, "cpu", measures=("knn",))) == list(results)[:2]


def test_the_encoder_keeps_modes_and_statistics(dataset):
    model = encoder()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report.accuracies(model, dataset, False, "cpu", measures=report.MEASURES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [False, True, True, True, True]


def test_alignment_is_of_the_views(dataset):
    def alignment(*views):
        return report.accuracies(nn.Flatten(), dataset, False, "cpu", ("alignment",), views=views)["alignment"]

    same = View(order=())
    darker = View(order=("solarize",), solarize_p=1.0)
    moved = View(order=("affine",))
    assert alignment(same) == alignment(same, same) == pytest.approx(0, abs=1e-6)
    assert alignment(same, darker) > 0.01
    assert alignment(moved) > 0.1  # two draws of one view
    assert alignment(moved) == alignment(moved)
    plain = expected_features(nn.Flatten(), dataset, False)["clean"]
    solarized = batch_augmentation.Augment(dataset, darker, False)(dataset.test_images, torch.Generator())
    assert alignment(same, darker) == pytest.approx(metrics.alignment(plain, solarized.flatten(1)), rel=1e-5)


def test_k_is_the_callers(dataset, monkeypatch):
    seen = []
    monkeypatch.setattr(metrics, "knn_accuracy", lambda *arguments, k: seen.append(k) or 0.5)
    report.accuracies(encoder(), dataset, False, "cpu", measures=("knn",), k=7)
    report.accuracies(encoder(), dataset, False, "cpu", measures=("knn",))
    assert seen == [7, 7, 20, 20]


def test_training_images_without_a_label_take_no_part(dataset):
    labels = torch.cat([dataset.train_labels, torch.full((40,), -1)])
    images = torch.cat([dataset.train_images, dataset.test_images[:40]])
    more = dataclasses.replace(dataset, train_images=images, train_labels=labels)
    results = [report.accuracies(encoder(), data, False, "cpu") for data in (dataset, more)]
    assert results[0] == results[1]


def test_a_folder_has_clean_images_only(dataset, tmp_path, monkeypatch):
    parts = {}
    for part in ("train", "test"):
        parts[part] = []
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = str(tmp_path / f"{part}{number}.png")
            Image.fromarray(image[0].numpy()).save(path)
            parts[part].append((path, label))
    folder = FolderDataset("stripes", **parts, classes=5, image_size=10)
    drawn = []
    monkeypatch.setattr(
        report, "Batches", lambda of, *rest, **more: drawn.append(of.train) or Batches(of, *rest, **more)
    )
    results = report.accuracies(nn.Flatten(), folder, False, "cpu", report.MEASURES)
    assert drawn == [folder.test]  # of which the positive pairs are
    assert list(results) == ["knn_clean", "probe_clean", "probe_1%", "probe_10%", "alignment", "uniformity"]
    assert results["alignment"] > 0.01
    assert results["probe_clean"] > 0.9


def test_an_unknown_measure(dataset):
    with pytest.raises(ValueError, match=r"measures: expected some of knn, probe, .* got 'svm'"):
        report.accuracies(encoder(), dataset, False, "cpu", measures=("knn", "svm"))


def printed(table):
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_table_shows_the_columns_that_the_rows_hold():
    rows = {
        "raw": {"knn_clean": 0.5, "probe_1%": 0.25},
        "trained": {"knn_clean": 0.75, "uniformity": -3.5, "top": None},
    }
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in printed(report.table(rows, "A title")).split("\n")
    ]
    assert ["raw", "0.500", "0.250", "–", "–"] in lines
    assert ["trained", "0.750", "–", "-3.500", "–"] in lines
    text = printed(report.table(rows, "A title"))
    assert all(word in text for word in ("A title", "kNN", "clean", "linear probe", "1%", "uniformity"))


def test_results_are_saved_whole(tmp_path):
    rows = {"simclr": {"knn_clean": 0.5}}
    path = report.save_results(tmp_path / "new", rows)
    assert path == tmp_path / "new" / "results.json"
    assert json.loads(path.read_text()) == rows
    with pytest.raises(TypeError):
        report.save_results(tmp_path / "new", {"simclr": {"knn_clean": torch.ones(2)}})
    assert json.loads(path.read_text()) == rows
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def panels(monkeypatch):
    """Figures instead of files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def drawn(axes):
    return {tuple(line.get_ydata()) for line in axes.lines if len(line.get_ydata())}


HISTORY = [
    {"epoch": 1, "loss": 4.0, "knn_clean": 0.2, "knn_transformed": None},
    {"epoch": 2, "loss": 3.0, "knn_clean": None, "top1": 0.5},
    {"epoch": 3, "loss": None, "knn_clean": 0.6, "knn_transformed": 0.4},
]


def test_curves_draw_what_was_measured(monkeypatch):
    figures = panels(monkeypatch)
    plots.curves({"one": HISTORY, "two": [{"epoch": 1, "loss": 1.0}, {"epoch": 2}]}, "x.png")
    axes = {one.get_ylabel(): one for one in figures[0].axes if one.get_ylabel()}
    assert list(axes) == ["contrastive loss", "top-1 among the negatives", "kNN accuracy"]
    assert drawn(axes["contrastive loss"]) == {(4.0, 3.0), (1.0,)}
    assert drawn(axes["top-1 among the negatives"]) == {(0.5,)}
    assert drawn(axes["kNN accuracy"]) == {(0.2, 0.6), (0.4,)}
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["one", "two"]
    assert [text.get_text() for text in axes["kNN accuracy"].get_legend().get_texts()] == [
        "clean test images",
        "transformed test images",
    ]


def test_more_runs_than_colours(monkeypatch):
    figures = panels(monkeypatch)
    plots.curves({str(number): HISTORY for number in range(13)}, "x.png")
    colours = {matplotlib.colors.to_rgb(line.get_color()) for line in figures[0].legends[0].get_lines()}
    assert len(colours) == 13


def test_curves_without_anything_to_draw(tmp_path):
    for histories in ({}, {"one": []}, {"one": [{"epoch": 1, "loss": None}]}):
        with pytest.raises(ValueError, match="histories: expected rows with some of loss, top1"):
            plots.curves(histories, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_pictures_are_drawn(tmp_path):
    plots.curves({"one": HISTORY}, tmp_path / "curves.png")
    images = torch.rand(4, 1, 6, 6)
    plots.pairs(images, images.flip(3), 0 * images, tmp_path / "pairs.png")
    plots.maps({"a": torch.randn(12, 5), "b": torch.randn(12, 3)}, torch.arange(12) % 3, tmp_path / "maps.png")
    plots.study({"0.1": [0.5, 0.6], "0.2": [0.7]}, tmp_path / "study.png", "kNN accuracy", "temperature")
    pictures = sorted(tmp_path.iterdir())
    assert [path.name for path in pictures] == ["curves.png", "maps.png", "pairs.png", "study.png"]
    for path in pictures:
        assert matplotlib.image.imread(path).std() > 0.05, path


def error_bars(axes):
    """Middle and half length of each error bar, in the order drawn."""
    bars = [segment for bar in axes.containers for lines in bar.lines[2] for segment in lines.get_segments()]
    return [(segment.mean(0).tolist(), (segment[1] - segment[0]).max() / 2) for segment in bars]


def test_a_study_over_numbers_is_a_line(monkeypatch):
    figures = panels(monkeypatch)
    plots.study({"1.0": [0.4], "0.05": [0.5, 0.7], "0.1": [0.6, 0.6, 0.9]}, "x.png", "accuracy", "temperature")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("temperature", "accuracy", "log")
    middles, spreads = zip(*error_bars(axes), strict=True)
    assert [value for middle in middles for value in middle] == pytest.approx([0.05, 0.6, 0.1, 0.7, 1.0, 0.4])
    assert spreads == pytest.approx([0.02**0.5, 0.03**0.5, 0])
    assert {(0.5, 0.7), (0.6, 0.6, 0.9), (0.4,)} <= drawn(axes)  # every seed
    plots.study({"1": [0.4], "2": [0.5]}, "x.png", "accuracy")
    assert figures[1].axes[0].get_xscale() == "linear"


def test_a_study_over_words_is_a_row_each(monkeypatch):
    figures = panels(monkeypatch)
    plots.study({"SimCLR": [0.4, 0.6], "0.5": [0.5]}, "x.png", "accuracy")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["SimCLR", "0.5"]
    middles, spreads = zip(*error_bars(axes), strict=True)
    assert [value for middle in middles for value in middle] == pytest.approx([0.5, 0, 0.5, 1])
    assert spreads == pytest.approx([0.02**0.5, 0])
    assert axes.yaxis_inverted()


@pytest.mark.parametrize(("results", "what"), [({}, "any"), ({"a": [1.0], "b": []}, "b")])
def test_a_study_of_nothing(results, what):
    with pytest.raises(ValueError, match=f"results: expected values for every label, got none for {what}"):
        plots.study(results, "x.png", "accuracy")
