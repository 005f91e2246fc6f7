"""The training loop on Lightning Fabric: a run from its start, or from its checkpoint, to its end."""

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
    """Trains a recipe and writes config.yaml, log.csv, TensorBoard's events, last.pt and best.pt to a folder.

    Ctrl-C finishes the step, saves, prints how to resume and raises KeyboardInterrupt.

    Args:
        recipe_name: A name of RECIPES.
        recipe: The recipe of that name, or one of its class with other numbers.
        data_spec: As data.load takes it.
        folder: Where the files go.
        settings: Where and how fast; None takes the defaults.
        resume: Go on from the folder's last.pt. On the CPU, with as many processes as before, the result is bit for bit
            that of a run without a stop (see checkpoint.py).
        fabric: A launched Fabric to run on; None makes one of the settings.

    Returns:
        The trained method; its `encoder` gives the features.

    Raises:
        FileNotFoundError: where there is nothing to resume, or no data.
        FileExistsError: where a checkpoint would be overwritten.
        ValueError: for a recipe, data or a checkpoint that do not fit each other, and a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C.

    Example:
        method = train("simclr-small", RECIPES["simclr-small"], "digits", "runs/simclr-small-digits")
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
    """Makes and launches the Fabric of the settings, which starts the other processes unless torchrun has done so.

    Raises:
        ValueError: for devices that are not there, or another number of them than torchrun started.
    """
    total = settings.devices * settings.nodes
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) != total:
        # Each process would take itself for the whole run, and all would write to the same folder.
        raise ValueError(f"devices: expected {os.environ['WORLD_SIZE']} on all nodes, as torchrun started, got {total}")
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,
            strategy=_data_parallel() if total > 1 else "auto",
        )
    except (RuntimeError, MisconfigurationException) as error:  # there is no such accelerator, or not as many devices
        raise ValueError(f"accelerator: {' '.join(str(error).split())}") from error
    fabric.launch()
    return fabric


def _data_parallel() -> DDPStrategy:
    # DDP would send all buffers from rank 0 at every step. Queue and bank are large, and the same on all ranks without
    # that. The statistics of batch norm differ between ranks, and the checkpoint has those of rank 0 in either case.
    known = inspect.signature(DistributedDataParallel).parameters
    name = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )  # the name in older releases of torch
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
            run.fabric.barrier()  # if a rank ended now, the launcher would kill rank 0 while it writes
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
    for name in reversed(names):  # last.pt comes last: where it is, the others are too
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
    # Another recipe has other fields; then the names of the recipes differ, which is enough.
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
    """Yields a function interrupted(step) that tells whether Ctrl-C was pressed, so that no step is left half done.

    A second Ctrl-C stops at once. Several processes exchange their answers at every log_every-th step and stop at the
    same one: a process in a later step would wait for ever for one that has stopped.
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
        yield interrupted  # Python lets only the main thread handle signals
        return

    def set_once(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, set_once)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
