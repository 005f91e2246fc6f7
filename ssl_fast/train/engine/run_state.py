"""One run: all that changes while a method trains, and a step of it."""

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

MEASUREMENTS = 12  # of the features in a run, about, where settings do not say


class Run:
    """A recipe on its data, on this process's device: the state that a checkpoint holds, and what moves it."""

    def __init__(self, recipe_name: str, recipe: Recipe, data_spec: str, settings: Settings, fabric: Fabric):
        self.recipe_name, self.recipe, self.data_spec, self.settings = recipe_name, recipe, data_spec, settings
        self.fabric = fabric
        self.dataset = _loaded(data_spec, fabric)
        self.image_size = recipe.image_size or self.dataset.image_size
        _check_fits(recipe, settings, fabric)
        self.batches = Batches(
            self.dataset, recipe, fabric.device, fabric.global_rank, fabric.world_size, settings.workers
        )
        self.steps = self.batches.steps // recipe.accumulate  # of the optimiser, an epoch
        if not self.steps:
            raise ValueError(f"accumulate: expected at most an epoch's {self.batches.steps}, got {recipe.accumulate}")
        self._build()
        self.epoch = self.step = 0
        self.totals = torch.zeros(2, device=fabric.device)  # of the loss and of top1, over the epoch's steps
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
        torch.manual_seed(recipe.seed + fabric.global_rank)  # what a process draws is its own
        self.method: Method = method
        self.module, self.optimizer = fabric.setup(method, optimizer_of(method, recipe))
        self.module.mark_forward_method("loss")
        self.scheduler = schedule_of(self.optimizer.optimizer, recipe, self.steps)
        self.loss_and_backward = (
            CapturedStep(self._loss_and_backward) if settings.cuda_graph else self._loss_and_backward
        )

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps

    @property
    def done_steps(self) -> int:
        return self.epoch * self.steps + self.step

    def train_epoch(self, logs: Logs | NoLogs, interrupted: Callable[[int], bool]) -> bool:
        """The rest of the epoch; True where an interrupt ended it early, between two steps."""
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
                loss, top1 = (self.totals / self.step).tolist()  # waits for the device
                images = (self.step - first) * self.recipe.batch_size * accumulate
                self.images_per_second = images / (time.monotonic() - started)
                logs.step(self.done_steps, f"loss {loss:.3f}  top-1 {top1:.3f}  {self.images_per_second:.0f} img/s")
        return False

    def train_step(self, batches: Iterable[tuple[list[Tensor], Tensor]]) -> None:
        """A step of the optimiser: the gradients of `accumulate` batches, averaged."""
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
        """Adds the epoch's row to the history and starts the next; whether the features are the best so far."""
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
        """The accuracies and the geometry of the features, as the log keeps them."""
        return report.accuracies(
            self.method.encoder, self.dataset, self.recipe.normalize_images, self.fabric.device,
            ("knn", "alignment", "uniformity"), image_size=self.recipe.image_size, views=self.recipe.views,
            workers=self.settings.workers,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What checkpoint.save takes; all processes must call."""
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
        """Whether the run will go on bit for bit: with as many processes as before."""
        self.method.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.scheduler.load_state_dict(contents["scheduler"])
        if contents["scaler"]:
            self.fabric.strategy.precision.load_state_dict(contents["scaler"])
        self.epoch, self.step, self.best = contents["epoch"], contents["step"], contents["best"]
        totals = contents["totals"].view(-1, 2)  # a row a process
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
    """The data, on rank 0 first, which may download. What it raises, it raises on every rank after the barrier."""
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
    """Raises ValueError for what this recipe cannot have on these devices."""
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
