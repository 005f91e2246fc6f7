"""The training loop, on Lightning Fabric: one run from its start or its checkpoint to its end."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from .. import __version__
from . import checkpoint, data, files, report
from .augment import Augment
from .methods import METHODS
from .recipes import Recipe

WARM_UP = 0.05  # share of all steps
KNN_POINTS = 12  # measurements of the kNN accuracy in a run, about
SHOWN_EVERY = 0.5  # seconds between two looks at the loss: each waits for the device
COLUMNS = ("epoch", "learning_rate", "loss", "top1", "knn_clean", "knn_transformed", "images_per_second")


def train(
    method_name: str,
    recipe: Recipe,
    dataset_spec: str,
    folder: str | Path,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> nn.Module:
    """Trains a method of METHODS and returns it; writes checkpoint, config and logs to `folder`.

    dataset_spec: as data.load takes it. resume: go on from the folder's checkpoint; on the CPU the
    result is bit for bit that of a run without a stop. fabric: where and in which precision to run;
    None takes one device, the best there is.

    Ctrl-C finishes the step, saves, prints how to resume and raises KeyboardInterrupt.
    Raises FileNotFoundError (nothing to resume, no data), FileExistsError (a checkpoint that would be lost)
    and ValueError (recipe, data or checkpoint that do not fit, a loss that is not finite).
    """
    recipe.check()
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"folder: expected a folder or a new name, {folder} is a file")
    path = folder / checkpoint.NAME
    contents = checkpoint.load(path) if resume else None
    if contents is None and path.exists():
        raise FileExistsError(f"folder: {path} would be lost; --resume goes on with it, --folder names another folder")
    if contents is not None:
        _check_same_run(path, contents, method_name, recipe, dataset_spec)
    run = Run(method_name, recipe, dataset_spec, fabric or Fabric(devices=1))
    if contents is None:
        files.write_text(
            folder / "config.json", json.dumps(_config(method_name, recipe, dataset_spec), indent=1) + "\n"
        )
    else:
        run.load_state_dict(contents)
    # purge_step: TensorBoard forgets what an interrupted run logged after its checkpoint, the epochs to come.
    with (
        SummaryWriter(folder, purge_step=run.epoch + 1) as writer,
        _progress(run) as progress,
        _interrupts() as interrupted,
    ):
        while run.epoch < recipe.epochs:
            stopped = run.train_epoch(progress, interrupted)
            if not stopped:
                run.finish_epoch()
                _log(writer, folder, run.history)
            checkpoint.save(path, run.state_dict())
            if interrupted.is_set() and run.epoch < recipe.epochs:
                progress.stop()
                command = resume_command(method_name, recipe, dataset_spec, folder)
                print(f"Stopped and saved in {path}. Go on with:\n  {command}", file=sys.stderr)
                raise KeyboardInterrupt
    return run.method


def resume_command(method_name: str, recipe: Recipe, dataset_spec: str, folder: Path) -> str:
    """The command line that goes on with a run."""
    words = ["ssl-fast", "train", method_name, "--data", dataset_spec, "--folder", str(folder), "--resume"]
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


class Run:
    """All that changes while a method trains: what a checkpoint holds."""

    def __init__(self, method_name: str, recipe: Recipe, dataset_spec: str, fabric: Fabric):
        self.method_name, self.recipe, self.dataset_spec, self.fabric = method_name, recipe, dataset_spec, fabric
        if fabric.world_size != 1:
            raise ValueError(f"fabric: expected one device, got {fabric.world_size}")
        dataset = data.load(dataset_spec)
        images = len(dataset.train_images)
        if not 1 <= recipe.batch_size <= images:
            raise ValueError(f"batch_size: expected 1 to the {images} training images, got {recipe.batch_size}")
        tensors: dict[str, Any] = {
            name: value for name, value in vars(dataset).items() if isinstance(value, torch.Tensor)
        }
        self.dataset = dataclasses.replace(
            dataset, **{name: tensor.to(fabric.device) for name, tensor in tensors.items()}
        )
        self.steps = images // recipe.batch_size  # an epoch; the last, smaller batch is dropped
        self.augment = Augment(dataset)
        torch.manual_seed(recipe.seed)
        self.augmentation_generator = torch.Generator(fabric.device).manual_seed(recipe.seed)
        # Another stream than the augmentation's, from the same seed.
        self.order_generator = torch.Generator().manual_seed(recipe.seed + 1)
        self.method = METHODS[method_name](recipe, channels=dataset.train_images.shape[1])
        self.fabric_method, self.optimizer = fabric.setup(self.method, _optimizer(self.method, recipe))
        self.fabric_method.mark_forward_method("loss")
        self.scheduler = _schedule(self.optimizer.optimizer, recipe.epochs * self.steps)
        self.epoch = 0
        self.totals = torch.zeros(2, device=fabric.device)  # of the loss and of top1, over the epoch's steps
        self.history: list[dict[str, Any]] = []
        self.images_per_second = 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        self.step = 0
        self.order = torch.randperm(len(self.dataset.train_images), generator=self.order_generator)
        self.totals.zero_()

    def train_epoch(self, progress: Progress, interrupted: threading.Event) -> bool:
        """The rest of the epoch; True where an interrupt ended it early, between two steps."""
        self.method.train()
        batch, first = self.recipe.batch_size, self.step
        started = shown = time.monotonic()
        while self.step < self.steps and not interrupted.is_set():
            self._train_step(self.order[self.step * batch : (self.step + 1) * batch])
            self.step += 1
            progress.update(progress.task_ids[0], completed=self.epoch * self.steps + self.step)
            now = time.monotonic()
            if now - shown > SHOWN_EVERY or self.step == self.steps:
                shown = now
                loss, top1 = (self.totals / self.step).tolist()
                self.images_per_second = (self.step - first) * batch / (time.monotonic() - started)
                speed = f"{self.images_per_second:.0f} img/s"
                progress.update(progress.task_ids[0], figures=f"loss {loss:.3f}  top-1 {top1:.3f}  {speed}")
        return self.step < self.steps

    def _train_step(self, indices: torch.Tensor) -> None:
        images = self.dataset.train_images[indices.to(self.fabric.device)]
        view1, view2 = (self.augment(images, self.augmentation_generator) for _ in range(2))
        loss, stats = self.fabric_method.loss(view1, view2)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        self.totals += torch.stack([loss.detach(), stats.top1])

    def finish_epoch(self) -> None:
        """Adds the epoch's row to the history and starts the next epoch."""
        loss, top1 = (self.totals / self.steps).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"loss: {loss} in epoch {self.epoch + 1}; a smaller learning_rate may help")
        self.epoch += 1
        row = dict.fromkeys(COLUMNS)
        row |= {"epoch": self.epoch, "learning_rate": self.scheduler.get_last_lr()[0], "loss": loss, "top1": top1}
        row["images_per_second"] = self.images_per_second
        every = max(1, self.recipe.epochs // KNN_POINTS)
        if self.epoch % every == 0 or self.epoch in (1, self.recipe.epochs):
            row |= report.accuracies(self.method.get_submodule("encoder"), self.dataset, measures=("knn",))
        self.history.append(row)
        self.start_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.method_name,
            "recipe": dataclasses.asdict(self.recipe),
            "data": self.dataset_spec,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "order": self.order,
            "totals": self.totals,
            "history": self.history,
            "torch_rng": torch.get_rng_state(),
            "augmentation_rng": self.augmentation_generator.get_state(),
            "order_rng": self.order_generator.get_state(),
        }

    def load_state_dict(self, contents: dict[str, Any]) -> None:
        self.method.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        self.epoch, self.step, self.order = contents["epoch"], contents["step"], contents["order"]
        self.totals.copy_(contents["totals"])
        self.history = contents["history"]
        torch.set_rng_state(contents["torch_rng"])
        self.augmentation_generator.set_state(contents["augmentation_rng"])
        self.order_generator.set_state(contents["order_rng"])


def _optimizer(method: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1]},
        # Biases and BatchNorm are not decayed, as in SimCLR's code.
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to 0, step by step."""
    warm_up = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _check_same_run(path: Path, contents: dict[str, Any], method_name: str, recipe: Recipe, dataset_spec: str) -> None:
    expected = {"method": contents["method"], "data": contents["data"]}
    got = {"method": method_name, "data": dataset_spec}
    # Fields of another method are not compared: the method itself differs.
    if contents["method"] == method_name:
        expected |= dataclasses.asdict(contents["recipe"])
        got |= dataclasses.asdict(recipe)
    for name, value in expected.items():
        if got[name] != value:
            raise ValueError(f"{name}: expected {value!r} as in {path}, which is to be resumed, got {got[name]!r}")


def _config(method_name: str, recipe: Recipe, dataset_spec: str) -> dict[str, Any]:
    modules = {"torch": torch, "torchvision": torchvision, "lightning": lightning}
    versions = {name: module.__version__ for name, module in modules.items()}
    return {
        "method": method_name,
        "data": dataset_spec,
        "seed": recipe.seed,
        "recipe": dataclasses.asdict(recipe),
        "versions": {"ssl_fast": __version__, "python": platform.python_version(), **versions},
    }


def _log(writer: SummaryWriter, folder: Path, history: list[dict[str, Any]]) -> None:
    """The last row for TensorBoard, all rows as log.csv: they are one with the checkpoint's, also after a resume."""
    row = history[-1]
    for name in COLUMNS[1:]:
        if row[name] is not None:
            writer.add_scalar(name, row[name], row["epoch"])
    writer.flush()
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    files.write_text(folder / "log.csv", text.getvalue())


def _progress(run: Run) -> Progress:
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    total = run.recipe.epochs * run.steps
    progress.add_task(run.method_name, total=total, completed=run.epoch * run.steps + run.step, figures="")
    return progress


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never left half done; the second Ctrl-C stops at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread may handle signals
        return

    def set_once(number: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, set_once)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
