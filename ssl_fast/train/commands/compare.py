"""`ssl-fast compare`: draws the curves of several runs in one picture, prints their values and settings as tables."""

# No `from __future__ import annotations`: tyro reads the annotations.

import csv
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from ..evaluation import plots
from .exit_code import exit_code

CONFIG, LOG = "config.yaml", "log.csv"  # in the folder of a run
# The columns of the log that are compared, and which of a column's values is the best.
VALUES = {"loss": min, "top1": max, "knn_clean": max, "knn_transformed": max, "probe_clean": max}
VALUES |= {"probe_transformed": max, "alignment": min, "uniformity": min}
IN_A_LABEL = 3  # the most settings in a label; the table has all of them
LONGEST = 24  # characters of a value in a label
MISSING = "–"

History = list[dict[str, Any]]
Fields = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast compare` with these arguments and returns its exit code."""
    return exit_code("compare", lambda: tyro.cli(_compare, prog="ssl-fast compare", args=arguments))


def _compare(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]")],
    output: Path = Path("compare.png"),
) -> None:
    """Draw the curves of runs in one picture, and print their values and the settings in which they differ.

    Args:
        runs: Folders that ssl-fast train wrote.
        output: The picture.
    """
    if not runs:
        raise ValueError("RUN: expected a folder that ssl-fast train wrote, got none")
    names = _names(list(runs))
    histories = {name: read_log(folder) for name, folder in zip(names, runs, strict=True)}
    settings = differing({name: read_config(folder) for name, folder in zip(names, runs, strict=True)})
    plots.curves(dict(zip(labels(settings), histories.values(), strict=True)), output)
    console = Console()
    console.print(_values_table(histories))
    if any(settings.values()):
        console.print(_settings_table(settings))
    print(output)


def read_log(folder: Path) -> History:
    """Reads a run's log.csv: a row for each epoch, by column a number, or None for an empty cell.

    Raises:
        FileNotFoundError: where there is no such folder or log.
        ValueError: where the log has no epoch, or a cell that is no number.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a run, there is none")
    path = folder / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; expected the folder of a run that ssl-fast train wrote")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a log in CSV ({error})") from error
    if not rows:
        raise ValueError(f"{path}: expected at least one epoch, got none")
    return [_row(path, number, row) for number, row in enumerate(rows, 1)]


def _row(path: Path, number: int, row: dict[str, str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for column, cell in row.items():
        try:
            numbers[column] = float(cell) if cell else None
        except (TypeError, ValueError):  # TypeError: more cells than columns
            raise ValueError(f"{path}: expected a number in {column} of row {number}, got {cell!r}") from None
    epoch = numbers.get("epoch")
    return {**numbers, "epoch": number if epoch is None else int(epoch)}


def read_config(folder: Path) -> Fields:
    """Reads the fields of a run's config.yaml, those of a view as view1.order; none where there is no such file.

    Raises:
        ValueError: where the file is no mapping in YAML.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values, got {type(values).__name__}")
    return _flat(values)


def _flat(values: dict[Any, Any], prefix: str = "") -> Fields:
    fields: Fields = {}
    for name, value in values.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields


def _names(folders: list[Path]) -> list[str]:
    """Returns the names of the folders, with as many of their parents as tell them apart.

    Raises:
        ValueError: for the same folder twice.
    """
    paths = [folder.resolve() for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"RUN: expected different folders, got {folders[number]} twice")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return [str(Path(*path.parts[-length:])) for path in paths]


def differing(configs: dict[str, Fields]) -> dict[str, Fields]:
    """Returns by run its fields that are not the same in all runs, or that some run does not have."""
    names = dict.fromkeys(name for fields in configs.values() for name in fields)
    unlike = [
        name
        for name in names
        if any(name not in fields for fields in configs.values())
        or any(fields[name] != next(iter(configs.values()))[name] for fields in configs.values())
    ]
    return {run: {name: fields[name] for name in unlike if name in fields} for run, fields in configs.items()}


def labels(settings: dict[str, Fields]) -> list[str]:
    """Returns a label for each run: its name, and the first few short settings that all runs have and that differ."""
    shared = [
        name
        for name in dict.fromkeys(name for fields in settings.values() for name in fields)
        if all(name in fields and len(str(fields[name])) <= LONGEST for fields in settings.values())
        and not name.startswith("versions.")
    ][:IN_A_LABEL]
    shown = {run: ", ".join(f"{name} {fields[name]}" for name in shared) for run, fields in settings.items()}
    return [f"{run} ({text})" if text else run for run, text in shown.items()]


def _values_table(histories: dict[str, History]) -> Table:
    """Makes the table of the last value that each run measured, and below it the best one with its epoch."""
    table = _table("last values and best ones", "measured", list(histories))
    table.add_row("epochs", *(str(history[-1]["epoch"]) for history in histories.values()))
    for key in VALUES:
        cells = [_last_and_best(history, key) for history in histories.values()]
        if any(cells):
            for name, column in ((key, 0), (f"{key}, best (epoch)", 1)):
                table.add_row(name, *(cell[column] if cell else MISSING for cell in cells))
    return table


def _last_and_best(history: History, key: str) -> tuple[str, str] | None:
    measured = [row for row in history if row.get(key) is not None]
    if not measured:
        return None
    best = VALUES[key](measured, key=lambda row: row[key])
    return f"{measured[-1][key]:.3f}", f"{best[key]:.3f} ({best['epoch']})"


def _settings_table(settings: dict[str, Fields]) -> Table:
    table = _table("settings that differ", "setting", list(settings))
    for name in dict.fromkeys(name for fields in settings.values() for name in fields):
        table.add_row(name, *(escape(str(fields.get(name, MISSING))) for fields in settings.values()))
    return table


def _table(title: str, first: str, runs: list[str]) -> Table:
    """Makes an empty table with a column for each run."""
    table = Table(title=title)
    table.add_column(first)
    for run in runs:
        table.add_column(escape(run), overflow="fold")
    return table
