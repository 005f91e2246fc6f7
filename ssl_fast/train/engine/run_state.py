"""The state of a run: all that changes while a method trains, and the steps that change it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn

from ...parallel.collectives import gather
from ..data import datasets
from ..data.batches import Batches
from ..evaluation import report
from ..models.method import Method, Result
from ..models.methods import build
from ..recipes import Recipe
from .cuda_graph import CapturedStep
from .logs import COLUMNS, Logs, NoLogs
from .optimizer import optimizer_of, schedule_of
from .settings import Settings

MEASUREMENTS = 12  # about so many times are the features measured in a run, unless the settings say otherwise


class Run:
    """A recipe that is trained on its data, on the device of this process.

    Args:
        recipe_name: The name of the recipe, for checkpoints and logs.
        recipe: What to train.
        data_spec: As data.load takes it.
        settings: Where and how fast.
        fabric: Launched, with the device and the other processes.

    Attributes:
        epoch: Epochs that are complete.
        step: Steps of the optimiser that are done in the next epoch.
        totals: (2,), the sums of loss and top-1 over these steps.
        history: The rows of the log.
        best: The best kNN accuracy so far.

    Raises:
        ValueError: for a recipe that these data or these devices cannot have.
        FileNotFoundError: for missing data.
    """

    def __init__(self, recipe_name: str, recipe: Recipe, data_spec: str, settings: Settings, fabric: Fabric):
        self.recipe_name, self.recipe, self.data_spec, self.settings = recipe_name, recipe, data_spec, settings
        self.fabric = fabric
        self.dataset = _loaded(data_spec, fabric)
        self.image_size = recipe.image_size or self.dataset.image_size
        _check_fits(recipe, settings, fabric)
        self.batches = Batches(
            self.dataset, recipe, fabric.device, fabric.global_rank, fabric.world_size, settings.workers
        )
        self.steps = self.batches.steps // recipe.accumulate  # steps of the optimiser in an epoch
        if not self.steps:
            raise ValueError(f"accumulate: expected at most an epoch's {self.batches.steps}, got {recipe.accumulate}")
        self._build()
        self.epoch = self.step = 0
        self.totals = torch.zeros(2, device=fabric.device)
        self.history: list[dict[str, Any]] = []
        self.best = -math.inf
        self.images_per_second = 0.0

    def _build(self) -> None:
        recipe, settings, fabric = self.recipe, self.settings, self.fabric
        torch.manual_seed(recipe.seed)
        group = dist.group.WORLD if fabric.world_size > 1 else None
        method: Any = build(recipe, self.dataset.channels, self.image_size, self.dataset.train_count, group)
        if recipe.sync_batch_norm and fabric.world_size > 1:
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        if settings.channels_last:
            method = method.to(memory_format=torch.channels_last)
        if settings.compile:
            for name, encoder in method.named_children():
                if name.endswith("encoder"):
                    encoder.compile()
        torch.manual_seed(recipe.seed + fabric.global_rank)  # each process draws noise and shuffles of its own
        self.method: Method = method
        self.module, self.optimizer = fabric.setup(method, optimizer_of(method, recipe))
        self.module.mark_forward_method("loss")
        self.scheduler = schedule_of(self.optimizer.optimizer, recipe, self.steps)
        self.loss_and_backward = (
            CapturedStep(self._loss_and_backward, method.parameters())
            if settings.cuda_graph
            else self._loss_and_backward
        )

    @property
    def total_steps(self) -> int:
        """Steps of the optimiser in the whole run."""
        return self.recipe.epochs * self.steps

    @property
    def done_steps(self) -> int:
        """Steps of the optimiser that are done."""
        return self.epoch * self.steps + self.step

    def train_epoch(self, logs: Logs | NoLogs, interrupted: Callable[[int], bool]) -> bool:
        """Trains the rest of the epoch.

        Args:
            logs: The progress bar.
            interrupted: Tells, before the step of this number, whether to stop.

        Returns:
            Whether the epoch was interrupted, between two steps.
        """
        self.method.train()
        accumulate, first, started = self.recipe.accumulate, self.step, time.monotonic()
        batches = iter(self.batches.epoch(self.epoch, self.step * accumulate))
        while self.step < self.steps:
            if interrupted(self.step):
                return True
            self.train_step(itertools.islice(batches, accumulate))
            self.step += 1
            logs.step(self.done_steps)
            if self.step % self.settings.log_every == 0 or self.step == self.steps:
                loss, top1 = (self.totals / self.step).tolist()  # this waits for the device
                images = (self.step - first) * self.recipe.batch_size * accumulate
                self.images_per_second = images / (time.monotonic() - started)
                logs.step(self.done_steps, f"loss {loss:.3f}  top-1 {top1:.3f}  {self.images_per_second:.0f} img/s")
        return False

    def train_step(self, batches: Iterable[tuple[list[Tensor], Tensor]]) -> None:
        """Takes a step of the optimiser, along the mean of the gradients of `accumulate` batches of (views, index)."""
        accumulate, clip = self.recipe.accumulate, self.recipe.clip_gradient
        self.method.start_step(self.done_steps, self.total_steps)
        self.optimizer.zero_grad()
        for number, (views, index) in enumerate(batches, start=1):
            unfinished = number < accumulate and self.fabric.world_size > 1
            with self.fabric.no_backward_sync(self.module) if unfinished else nullcontext():
                if self.settings.channels_last:
                    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
                result = self.loss_and_backward(views, index)
            self.totals += torch.stack([result.loss.detach().float(), result.stats.top1.float()]) / accumulate
        if clip:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.scheduler.step()

    def _loss_and_backward(self, views: list[Tensor], index: Tensor) -> Result:
        result: Result = self.module.loss(views, index)
        self.fabric.backward(result.loss / self.recipe.accumulate)
        self.method.after_backward(result.embeddings, index)
        return result

    def finish_epoch(self) -> bool:
        """Adds the epoch's row to the history and begins the next epoch.

        Returns:
            Whether the features were measured and are the best so far.

        Raises:
            ValueError: for a loss that is not finite.
        """
        totals: Any = self.fabric.all_reduce(self.totals, reduce_op="mean")
        loss, top1 = (totals / self.steps).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"loss: {loss} in epoch {self.epoch + 1}; a smaller learning_rate may help")
        momentum = getattr(self.method, "momentum", None)
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"epoch": self.epoch + 1, "learning_rate": self.scheduler.get_last_lr()[0], "loss": loss, "top1": top1}
        row |= {"momentum": None if momentum is None else float(momentum), "images_per_second": self.images_per_second}
        self.epoch, self.step = self.epoch + 1, 0
        self.totals.zero_()
        every = self.settings.evaluate_every or max(1, self.recipe.epochs // MEASUREMENTS)
        if self.epoch % every == 0 or self.epoch in (1, self.recipe.epochs):
            if self.fabric.is_global_zero:
                row |= self.measure()
            self.fabric.barrier()
        self.history.append(row)
        better = row["knn_clean"] is not None and row["knn_clean"] > self.best
        if better:
            self.best = row["knn_clean"]
        return better

    def measure(self) -> dict[str, float]:
        """Measures the features for the log: kNN, alignment and uniformity."""
        return report.accuracies(
            self.method.encoder, self.dataset, self.recipe.normalize_images, self.fabric.device,
            ("knn", "alignment", "uniformity"), image_size=self.recipe.image_size, views=self.recipe.views,
            workers=self.settings.workers,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Collects what checkpoint.save takes. All processes must call it, since it gathers their random states."""
        rng: list[Any] = [_rng_state(self.fabric.device)]
        totals, group = self.totals[None], self.method.group
        if group is not None:
            rng = [None] * self.fabric.world_size
            dist.all_gather_object(rng, _rng_state(self.fabric.device))
            totals = gather(totals, group)
        return {
            "recipe_name": self.recipe_name,
            "recipe": dataclasses.asdict(self.recipe),
            "settings": dataclasses.asdict(self.settings),
            "data": self.data_spec,
            "images": self.dataset.train_count,
            "channels": self.dataset.channels,
            "image_size": self.image_size,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "totals": totals,
            "history": self.history,
            "best": self.best,
            "rng": rng,
        }

    def load_state_dict(self, contents: dict[str, Any]) -> bool:
        """Takes the state of a checkpoint.

        Args:
            contents: As checkpoint.load returns them.

        Returns:
            Whether the run goes on bit for bit, that is, with as many processes as before.
        """
        self.method.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        if contents["scaler"]:
            self.fabric.strategy.precision.load_state_dict(contents["scaler"])
        self.epoch, self.step, self.best = contents["epoch"], contents["step"], contents["best"]
        totals = contents["totals"].view(-1, 2)  # a row for each process
        self.history = contents["history"]
        if len(contents["rng"]) != self.fabric.world_size:
            self.totals.copy_(totals.mean(0))
            return False
        self.totals.copy_(totals[self.fabric.global_rank])
        state = contents["rng"][self.fabric.global_rank]
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.fabric.device)
        return True


def _loaded(spec: str, fabric: Fabric) -> datasets.Dataset | datasets.FolderDataset:
    """Loads the data on rank 0 first, which may download them, then on the others.

    An error is raised after the barrier, on every rank: a rank that raised before it would leave the others waiting.
    """
    with fabric.rank_zero_first():
        try:
            return datasets.load(spec)
        except (ValueError, OSError) as caught:
            error = caught
    raise error


def _rng_state(device: torch.device) -> dict[str, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _check_fits(recipe: Recipe, settings: Settings, fabric: Fabric) -> None:
    """Raises ValueError for a recipe or settings that these devices cannot have."""
    world = fabric.world_size
    if recipe.batch_size % (world * recipe.bn_groups):
        raise ValueError(
            f"batch_size: expected a multiple of {world} processes x {recipe.bn_groups} bn_groups, "
            f"got {recipe.batch_size}"
        )
    on_cuda = fabric.device.type == "cuda"
    if recipe.sync_batch_norm and world > 1 and not on_cuda:
        raise ValueError("sync_batch_norm: torch has it on CUDA devices only; here --no-sync-batch-norm")
    if settings.cuda_graph and (not on_cuda or world > 1 or recipe.accumulate > 1):
        raise ValueError(
            f"cuda_graph: expected one CUDA device and accumulate 1, got {world} x {fabric.device.type}, "
            f"accumulate {recipe.accumulate}"
        )
