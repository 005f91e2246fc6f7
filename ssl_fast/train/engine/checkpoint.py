"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A resumed run ends with the same bits as one that was never stopped, on the CPU and with as many processes as before.
Four things make it so:

1.  The checkpoint holds all state that training changes, as Run.state_dict collects it: the method's weights and
    buffers (batch norm's statistics, queue and its pointer, memory bank, key encoder), the optimiser's state, the
    schedule's position, the gradient scaler, how many epochs and steps are done, the sums of loss and top-1 in the
    epoch so far, the history of the log, the best accuracy, and on every process the state of torch's random
    generators, from which shuffles and sampled negatives are drawn.
2.  The views are not part of that state. data/batches.py draws the order of an epoch and the views of a step from the
    seed, the epoch, the step and the rank alone, so a run that resumes in the middle of an epoch starts its iterator at
    the step where it stopped and draws the same batches.
3.  A run stops between two steps of the optimiser. Ctrl-C waits for the end of the step (training_loop._interrupts),
    several processes agree on the step, and no gradient has to be stored. After a kill the run goes on from the last
    checkpoint, which is written after every epoch, and repeats what came after it.
4.  A checkpoint is whole or the old one stays: files.replacing writes beside it, syncs and renames. The folder's
    last.pt is written after best.pt and epoch-N.pt of the same epoch, so that they are there wherever it is.

Recipe, data and number of processes must be those of before; training_loop.train checks the first two, and says where
the third differs, since the random views, shuffles and batch-norm statistics of a process are then others. On a GPU the
state is the same, but kernels of PyTorch and cuDNN that add in no fixed order may round differently in every run.

tests/train/engine/test_training_loop.py compares the bits after a stop at several places, for every method;
test_kill.py does so after a kill, test_processes.py for two processes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..recipes import RECIPES, View
from .settings import Settings

# The files in the folder of a run: LAST after every epoch, BEST of the epoch with the best kNN accuracy so far.
LAST, BEST = "last.pt", "best.pt"
FORMAT = "ssl_fast checkpoint 2"
# recipe, settings: as dicts. images, channels, image_size: of the training data. epoch: epochs that are complete.
# step: steps of the optimiser that are done in the next epoch. totals: (processes, 2), the sums of loss and top-1 over
# these steps. history: the rows of the log. best: the best kNN accuracy. rng: a dict for each process, the states of
# torch's generators.
KEYS = (
    *("recipe_name", "recipe", "settings", "data", "images", "channels", "image_size"),
    *("model", "optimizer", "scheduler", "scaler", "epoch", "step", "totals", "history", "best", "rng"),
)


def save(path: str | Path, contents: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: The file; what was there stays if anything fails.
        contents: The keys of KEYS.
    """
    with files.replacing(path) as file:
        try:
            torch.save({"format": FORMAT, **contents}, file)
        except RuntimeError as error:
            # torch's writer raises RuntimeError where the file raised OSError, which says that the disk is full.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint, without running any code that the file may hold.

    Returns:
        The keys of KEYS: tensors on the CPU, `recipe` a Recipe and `settings` a Settings.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged, or no checkpoint of this version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    contents = files.read_tensors(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or not contents.keys() >= set(KEYS):
        raise ValueError(f"{path}: expected a checkpoint of `ssl-fast train` ({FORMAT}), got another file")
    default = RECIPES.get(contents["recipe_name"])
    try:
        recipe = _object(type(default), contents["recipe"])
        settings = _object(Settings, contents["settings"])
    except (TypeError, AttributeError) as error:
        name = contents["recipe_name"]
        raise ValueError(f"{path}: written by another version of ssl_fast, in which {name} has other fields") from error
    return {**contents, "recipe": recipe, "settings": settings}


def _object(kind: Any, values: dict[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    if values.keys() != fields:
        raise TypeError(f"expected the fields {fields}, got {set(values)}")
    return kind(**{name: View(**value) if isinstance(value, dict) else value for name, value in values.items()})
