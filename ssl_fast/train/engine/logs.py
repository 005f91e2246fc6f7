"""The logs of a run: a progress bar, log.csv, TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from .. import files

MEASURED = ("knn_clean", "knn_transformed", "probe_clean", "probe_transformed", "alignment", "uniformity")
COLUMNS = ("epoch", "learning_rate", "momentum", "loss", "top1", *MEASURED, "images_per_second")


def _wait_for_a_second_of_its_own(folder: Path) -> None:
    """Waits until the folder has no event file that begins in this second.

    TensorBoard reads event files in the order of their names, events.out.tfevents.SECOND.HOST.PROCESS.NUMBER, in which
    number 10 comes before 9: of a run that is resumed within a second it might take the earlier part for the later.
    """
    seconds = {path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")}
    while str(int(time.time())) in seconds:
        time.sleep(0.05)


class Logs:
    """The logs of one run, as a context manager.

    Args:
        folder: Of the run.
        title: Of the progress bar.
        epoch: The first epoch to be logged; what TensorBoard has of it and of later ones is dropped.
        steps: Of the whole run.
        done: Steps that are done.
        wandb: The project of Weights & Biases, or None.
        config: What Weights & Biases stores with the run.
    """

    def __init__(self, folder: Path, title: str, epoch: int, steps: int, done: int, wandb: str | None, config: Any):
        self.folder = folder
        _wait_for_a_second_of_its_own(folder)
        self.writer = SummaryWriter(folder, purge_step=epoch)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self.task = self.progress.add_task(title, total=steps, completed=done, figures="")
        self.wandb: Any = None
        if wandb is not None:
            import wandb as weights_and_biases  # type: ignore[import-not-found, unused-ignore]

            self.wandb = weights_and_biases.init(project=wandb, dir=folder, config=config, resume="allow")

    def __enter__(self) -> Logs:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.writer.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(kind is not None))

    def step(self, done: int, figures: str | None = None) -> None:
        """Moves the progress bar to `done` steps of the run, with `figures` as the text beside it."""
        changes: dict[str, Any] = {} if figures is None else {"figures": figures}
        self.progress.update(self.task, completed=done, **changes)

    def epoch(self, history: list[dict[str, Any]]) -> None:
        """Logs the last row of the history. log.csv is written whole, so that it agrees with the checkpoint."""
        row = {name: value for name, value in history[-1].items() if value is not None}
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()
        if self.wandb is not None:
            self.wandb.log(row, step=row["epoch"])
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(history)
        files.write_text(self.folder / "log.csv", text.getvalue())


class NoLogs:
    """The logs of all processes but the first: none."""

    def __enter__(self) -> NoLogs:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def step(self, done: int, figures: str | None = None) -> None:
        pass

    def epoch(self, history: list[dict[str, Any]]) -> None:
        pass
