"""The training loop, on Lightning Fabric: one run from its start or its checkpoint to its end."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from .. import files
from ..models.method import Method
from ..recipes import RECIPES, Recipe
from . import checkpoint, config_file
from .logs import Logs, NoLogs
from .run_state import Run
from .settings import Settings


def train(
    recipe_name: str,
    recipe: Recipe,
    data_spec: str,
    folder: str | Path,
    settings: Settings | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> Method:
    """Trains a recipe of RECIPES, or one with other numbers, and returns the method; writes all to `folder`.

    data_spec: as data.load takes it. resume: go on from the folder's last.pt; on the CPU, with as many processes,
    the result is bit for bit that of a run without a stop. fabric: where and in which precision to run; None makes
    one of the settings.

    Writes config.yaml, log.csv, TensorBoard's events, last.pt, best.pt. Ctrl-C finishes the step, saves, prints how
    to resume and raises KeyboardInterrupt.
    Raises FileNotFoundError (nothing to resume, no data), FileExistsError (a checkpoint that would be lost)
    and ValueError (recipe, data or checkpoint that do not fit, a loss that is not finite).
    """
    settings = settings or Settings()
    _check_recipe(recipe_name, recipe)
    settings.check()
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"folder: expected a folder or a new name, {folder} is a file")
    path = folder / checkpoint.LAST
    contents = checkpoint.load(path) if resume else None
    if contents is None and path.exists():
        raise FileExistsError(f"folder: {path} would be lost; --resume goes on with it, --folder names another folder")
    if contents is not None:
        _check_same_run(path, contents, recipe_name, recipe, data_spec)
    run = Run(recipe_name, recipe, data_spec, settings, fabric or launched(settings))
    if run.fabric.is_global_zero:
        files.remove_parts(folder)
        config_file.save(folder, recipe_name, recipe, data_spec, settings)
    if contents is not None and not run.load_state_dict(contents):
        run.fabric.print(
            f"Resumed with another number of processes ({len(contents['rng'])} before): same weights, order of the "
            "images and schedule, other random views, batch-norm statistics and shuffles"
        )
    with _logs(run, folder) as logs, _interrupts(run) as interrupted:
        _epochs(run, folder, logs, interrupted)
    return run.method


def launched(settings: Settings) -> Fabric:
    """The Fabric of the settings; with several devices this starts the other processes, unless torchrun did.

    Raises ValueError for devices that are not there or not those that torchrun started.
    """
    total = settings.devices * settings.nodes
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != total:
        # Else each process would be a run of its own, in the same folder.
        raise ValueError(f"devices: expected {os.environ['WORLD_SIZE']} on all nodes, as torchrun started, got {total}")
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,
            strategy=_data_parallel() if total > 1 else "auto",
        )
    except (RuntimeError, MisconfigurationException) as error:  # no such accelerator here, or not as many devices
        raise ValueError(f"accelerator: {' '.join(str(error).split())}") from error
    fabric.launch()
    return fabric


def _data_parallel() -> DDPStrategy:
    # Queue and bank are the same on all ranks and too large to be sent at every step; of the statistics of batch norm
    # rank 0's are kept either way.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # as older torch has it
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)


def _epochs(run: Run, folder: Path, logs: Logs | NoLogs, interrupted: Any) -> None:
    while run.epoch < run.recipe.epochs:
        stopped = run.train_epoch(logs, interrupted)
        better = not stopped and run.finish_epoch()
        if not stopped:
            logs.epoch(run.history)
        _save(run, folder, better, stopped)
        if interrupted(0) and run.epoch < run.recipe.epochs:
            if run.fabric.is_global_zero:
                command = shlex.join(
                    [
                        "ssl-fast",
                        "train",
                        "--config",
                        str(folder / config_file.NAME),
                        "--folder",
                        str(folder),
                        "--resume",
                    ]
                )
                print(f"Stopped and saved in {folder / checkpoint.LAST}. Go on with:\n  {command}", file=sys.stderr)
            run.fabric.barrier()  # a rank that left would have the launcher kill rank 0 while it writes
            raise KeyboardInterrupt


def _save(run: Run, folder: Path, better: bool, stopped: bool) -> None:
    contents = run.state_dict()
    if not run.fabric.is_global_zero:
        return
    names = [checkpoint.LAST]
    every = run.settings.save_every
    if not stopped and every and run.epoch % every == 0:
        names.append(f"epoch-{run.epoch:04d}.pt")
    if better:
        names.append(checkpoint.BEST)
    for name in reversed(names):  # last.pt at the end: it says that the others are there
        checkpoint.save(folder / name, contents)


def _check_recipe(name: str, recipe: Recipe) -> None:
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    if type(recipe) is not type(RECIPES[name]):
        raise TypeError(f"recipe: expected {type(RECIPES[name]).__name__} as {name}, got {type(recipe).__name__}")
    recipe.check()


def _check_same_run(path: Path, contents: dict[str, Any], recipe_name: str, recipe: Recipe, data_spec: str) -> None:
    expected = {"recipe": contents["recipe_name"], "data": contents["data"]}
    got = {"recipe": recipe_name, "data": data_spec}
    if contents["optimizer"] is None:
        raise ValueError(f"resume: {path} was imported and holds weights alone; there is no run to go on with")
    # Fields of another recipe are not compared: the recipe itself differs.
    if contents["recipe_name"] == recipe_name:
        expected |= dataclasses.asdict(contents["recipe"])
        got |= dataclasses.asdict(recipe)
    for name, value in expected.items():
        if got[name] != value:
            raise ValueError(f"{name}: expected {value!r} as in {path}, which is to be resumed, got {got[name]!r}")


def _logs(run: Run, folder: Path) -> Logs | NoLogs:
    if not run.fabric.is_global_zero:
        return NoLogs()
    return Logs(
        folder, run.recipe_name, run.epoch + 1, run.total_steps, run.done_steps, run.settings.wandb,
        dataclasses.asdict(run.recipe),
    )  # fmt: skip


@contextmanager
def _interrupts(run: Run) -> Iterator[Any]:
    """interrupted(step): whether Ctrl-C came, so that a step is never left half done; the second stops at once.

    Several processes agree, at every log_every-th step: none may wait in a step for one that has stopped.
    """
    event = threading.Event()

    def interrupted(step: int) -> bool:
        if run.fabric.world_size == 1:
            return event.is_set()
        if step % run.settings.log_every:
            return False
        asked = torch.tensor(float(event.is_set()), device=run.fabric.device)
        total: Any = run.fabric.all_reduce(asked, reduce_op="sum")
        return bool(total > 0)

    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread may handle signals
        return

    def set_once(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, set_once)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
