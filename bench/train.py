"""Training beside lightly: `python -m bench train [--methods RECIPE ...] [--seeds N] [--epochs N] [--output FOLDER]`.

A recipe is trained twice, by our methods and by lightly's parts put together as in lightly's examples: with the same
weights, images, optimiser and schedule. Measured are the time of a step, how far the losses agree, and what the
trained encoders are worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightly
import torch
from lightly.loss import NTXentLoss
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from ssl_fast.train import data
from ssl_fast.train.data.batches import Batch, Batches
from ssl_fast.train.engine.optimizer import optimizer_of, schedule_of
from ssl_fast.train.evaluation.report import accuracies
from ssl_fast.train.models import Method, build
from ssl_fast.train.recipes import RECIPES, Recipe

from . import measure, report

ONE_BATCH = "lightly, one batch"
# lightly has no loss for MoCo v3, whose queries meet the keys of the other view alone, and no instance discrimination.
COMPARABLE = [name for name, recipe in RECIPES.items() if recipe.method in ("simclr", "moco")]
WARM_UP, COMPARED_LOSSES = 5, 100  # steps


class Ours(nn.Module):
    def __init__(self, method: Method):
        super().__init__()
        self.method, self.encoder = method, method.encoder

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        self.method.start_step(0, 1)  # the numbers are MoCo v3's
        return self.method.loss(views, index).loss

    def take_embeddings(self) -> None:
        """From here on `loss` is given embeddings for views."""
        method: Any = self.method
        method.both = lambda *embeddings: embeddings
        method.query = method.key = lambda embeddings: (embeddings,)


class LightlySimCLR(nn.Module):
    """As in lightly's example of SimCLR: each view goes through the model alone."""

    def __init__(self, ours: Any, recipe: Any):
        super().__init__()
        self.backbone, self.projection_head = deepcopy(ours.encoder), deepcopy(ours.head)
        self.criterion = NTXentLoss(temperature=recipe.temperature)
        self.encoder = self.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.backbone(images).flatten(start_dim=1))

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        z0, z1 = self(views[0]), self(views[1])
        return self.criterion(z0, z1)

    def take_embeddings(self) -> None:
        self.forward: Any = lambda embeddings: embeddings


class LightlySimCLROneBatch(LightlySimCLR):
    """The same with both views in one batch, as in the paper's code and ours: batch norm sees them together."""

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        z0, z1 = self(torch.cat(views)).chunk(2)
        return self.criterion(z0, z1)


class LightlyMoCo(nn.Module):
    """As in lightly's example of MoCo v2, with the recipe's constant momentum and our queue's first rows."""

    def __init__(self, ours: Any, recipe: Any):
        super().__init__()
        self.backbone, self.projection_head = deepcopy(ours.encoder), deepcopy(ours.head)
        self.backbone_momentum, self.projection_head_momentum = deepcopy(self.backbone), deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        size = tuple(ours.queue.queue.shape)
        self.criterion = NTXentLoss(temperature=recipe.temperature, memory_bank_size=size)
        self.criterion.memory_bank.bank.copy_(ours.queue.queue)
        self.momentum, self.encoder = recipe.momentum, self.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.backbone(images).flatten(start_dim=1))

    def forward_momentum(self, images: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(images).flatten(start_dim=1)).detach()

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, m=self.momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=self.momentum)
        query, key = self(views[0]), self.forward_momentum(views[1])
        return self.criterion(query, key)

    def take_embeddings(self) -> None:
        self.forward: Any = lambda embeddings: embeddings
        self.forward_momentum: Any = lambda embeddings: embeddings


class Training:
    """A network with its optimiser and schedule; keeps its losses."""

    def __init__(self, module: Any, recipe: Recipe, steps: int):
        self.module = module.train()
        self.optimizer = optimizer_of(module, recipe)
        self.scheduler = schedule_of(self.optimizer, recipe, steps)
        self.losses: list[Tensor] = []

    def step(self, batch: Batch) -> None:
        loss = self.module.loss(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.losses.append(loss.detach())


def modules(recipe: Any, dataset: Any) -> dict[str, Any]:
    """By name, all with the same weights: ours, lightly's, and SimCLR once more with both views in one batch."""
    torch.manual_seed(recipe.seed)
    method = build(recipe, dataset.channels, recipe.image_size or dataset.image_size, dataset.train_count)
    others = {"lightly": LightlyMoCo} if recipe.method == "moco" else {}
    if recipe.method == "simclr":
        others = {"lightly": LightlySimCLR, ONE_BATCH: LightlySimCLROneBatch}
    return {"ssl_fast": Ours(method)} | {name: other(method, recipe) for name, other in others.items()}


def alternating(
    runs: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]], rounds: int, warm_up: int = WARM_UP
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the steps by name, and of the steps with what prepares them; runs: (prepare, step) by name.

    Each round takes one step of each, in a turning order: all see the same machine.
    """
    names = list(runs)
    alone: dict[str, list[float]] = {name: [] for name in names}
    prepared: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            prepare, step = runs[name]
            start = time.perf_counter()
            given = prepare()
            ready = time.perf_counter()
            step(given)
            end = time.perf_counter()
            if number >= warm_up:
                alone[name].append(end - ready)
                prepared[name].append(end - start)
    return alone, prepared


def endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)


def time_row(name: str, recipe: Recipe, part: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """A row of the report; ratio: theirs to ours of the same round, its median and quantiles."""
    spread = {who: measure.quantiles(values) for who, values in times.items()}
    ratios = {
        who: measure.quantiles([a / b for a, b in zip(values, times["ssl_fast"], strict=True)])
        for who, values in times.items()
        if who != "ssl_fast"
    }
    return {
        "suite": "train step",
        "name": name,
        "part": part,
        "size": recipe.batch_size,
        "about": {"batch": recipe.batch_size, "encoder": recipe.encoder, "threads": torch.get_num_threads()},
        "median": {who: values[0] for who, values in spread.items()},
        "quantile20": {who: values[1] for who, values in spread.items()},
        "quantile80": {who: values[2] for who, values in spread.items()},
        "ratio": ratios,
        "rounds": len(times["ssl_fast"]),
    }


def step_rows(name: str, recipe: Recipe, dataset: Any, rounds: int) -> Iterator[dict[str, Any]]:
    """Times of a whole step, without and with its data, and the losses of these first steps."""
    runs: dict[str, Any] = {}
    trainings: dict[str, Training] = {}
    for who, module in modules(recipe, dataset).items():
        batches = Batches(dataset, recipe, "cpu")
        trainings[who] = training = Training(module, recipe, batches.steps)
        runs[who] = (endless(batches).__next__, training.step)
    alone, prepared = alternating(runs, rounds)
    yield time_row(name, recipe, "step", alone)
    yield time_row(name, recipe, "step with its data", prepared)
    losses = {who: torch.stack(training.losses[:COMPARED_LOSSES]).tolist() for who, training in trainings.items()}
    yield {"suite": "train losses", "name": name, "seed": recipe.seed, "losses": losses}


def loss_row(name: str, recipe: Recipe, dataset: Any, rounds: int) -> dict[str, Any]:
    """Times of what is left of a step without encoders, optimiser and data: loss, its gradient, EMA, queue."""
    with_gradient = 1 if recipe.method == "moco" else 2
    runs: dict[str, Any] = {}
    for who, module in modules(recipe, dataset).items():
        if who == ONE_BATCH:  # the same as lightly's from here
            continue
        module.take_embeddings()
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randn(recipe.batch_size, recipe.projection_dim, generator=generator) for _ in range(2)]
        for embeddings in rows[:with_gradient]:
            embeddings.requires_grad_()

        def step(given: Batch, module: Any = module) -> None:
            for embeddings in given[0]:
                embeddings.grad = None
            module.loss(*given).backward()

        given = rows, torch.arange(recipe.batch_size)
        runs[who] = (lambda given=given: given, step)
    part = "loss, EMA and queue" if recipe.method == "moco" else "loss"
    return time_row(name, recipe, part, alternating(runs, rounds)[0])


def trained(recipe: Recipe, dataset: Any) -> dict[str, dict[str, float]]:
    """What both encoders are worth after training, by name; each batch is drawn once for both."""
    batches, networks = Batches(dataset, recipe, "cpu"), modules(recipe, dataset)
    trainings = {who: Training(networks[who], recipe, batches.steps) for who in ("ssl_fast", "lightly")}
    for epoch in range(recipe.epochs):
        for batch in batches.epoch(epoch):
            for training in trainings.values():
                training.step(batch)
    found = {}
    for who, training in trainings.items():
        encoder = training.module.encoder
        found[who] = accuracies(encoder, dataset, recipe.normalize_images, "cpu", image_size=recipe.image_size)
        found[who]["last_loss"] = torch.stack(training.losses[-batches.steps :]).mean().item()
    return found


def rows_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report's rows, those of the accuracies again with each seed."""
    dataset = data.load(options.data)
    chosen = {name: recipe_of(name, options) for name in options.methods}
    for name, recipe in chosen.items():
        print(f"{name}: times ...", flush=True)
        yield from step_rows(name, recipe, dataset, options.rounds)
        yield loss_row(name, recipe, dataset, 10 * options.rounds)
    results: dict[str, dict[str, list[Any]]] = {name: {"ssl_fast": [], "lightly": []} for name in chosen}
    for seed, (name, recipe) in itertools.product(range(options.seeds), chosen.items()):
        print(f"{name}: training, seed {seed} ...", flush=True)
        for who, values in trained(dataclasses.replace(recipe, seed=seed), dataset).items():
            results[name][who].append(values)
        about = {"data": options.data, "epochs": recipe.epochs, "batch": recipe.batch_size, "encoder": recipe.encoder}
        yield {"suite": "train accuracy", "name": name, "about": about, "results": results[name]}


def recipe_of(name: str, options: argparse.Namespace) -> Recipe:
    """Raises ValueError for a recipe that lightly's parts do not do as ours."""
    if name not in COMPARABLE:
        raise ValueError(f"methods: expected some of {', '.join(COMPARABLE)}, got {name!r}")
    changes = {"epochs": options.epochs, "batch_size": options.batch_size}
    changes = {key: value for key, value in changes.items() if value is not None}
    recipe: Any = dataclasses.replace(RECIPES[name], **changes)
    recipe.check()
    if recipe.bn_groups > 1:
        raise ValueError(f"methods: expected a recipe of one bn_group, got {name} of {recipe.bn_groups}")
    if recipe.method == "moco" and recipe.queue_size % recipe.batch_size:
        # lightly drops the part of a batch that is beyond the queue's end.
        raise ValueError(f"batch_size: expected a divisor of the queue of {recipe.queue_size}, got {recipe.batch_size}")
    return recipe


def markdown(saved: dict[str, Any]) -> str:
    """The tables, of what results.json holds."""
    rows = {
        suite: [row for row in saved["rows"] if row["suite"] == suite]
        for suite in ("train step", "train losses", "train accuracy")
    }
    about = ", ".join(f"{key} {value}" for key, value in saved["machine"].items())
    limit = f"sgemm {saved['limits']['sgemm'] / 1e9:.0f} GFLOP/s in this run"  # how busy the machine was
    lines = [
        "# Training beside lightly", "", f"{about}; {limit}", "",
        "Medians (20 % quantiles); steps interleaved; theirs / ours: median ratio of a round (20 to 80 %).", "",
        "| recipe | batch | timed | ssl_fast, ms | other | other, ms | theirs / ours | rounds |",
        "|---|---:|---|---:|---|---:|---:|---:|",
        *itertools.chain.from_iterable(map(_time_lines, rows["train step"])), "",
        "Losses of the first steps, of the same weights and images:", "",
        "| recipe | other | first loss, ssl_fast | first loss, other | largest difference, steps 1 to 10 "
        "| first over 1 % apart | steps |", "|---|---|---:|---:|---:|---:|---:|",
        *itertools.chain.from_iterable(map(_loss_lines, rows["train losses"])), "",
    ]  # fmt: skip
    if rows["train accuracy"]:
        lines += [
            "Test accuracy of the encoders, mean (lowest to highest) over the seeds; last loss: of the last epoch.",
            "", "| recipe | epochs | seeds | measure | ssl_fast | lightly | lightly - ssl_fast, by seed |",
            "|---|---:|---:|---|---:|---:|---|",
            *itertools.chain.from_iterable(map(_accuracy_lines, rows["train accuracy"])), "",
        ]  # fmt: skip
    lines += [
        f"\"{ONE_BATCH}\" is lightly's loss behind our forward pass, both views in one batch; lightly's own examples",
        "pass each view alone. MoCo v3 is left out: lightly has its head, but no loss for it.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _time_lines(row: dict[str, Any]) -> Iterator[str]:
    times = {who: f"{1e3 * value:.2f} ({1e3 * row['quantile20'][who]:.2f})" for who, value in row["median"].items()}
    for who, (ratio, low, high) in row["ratio"].items():
        yield (
            f"| {row['name']} | {row['size']} | {row['part']} | {times['ssl_fast']} | {who} | {times[who]} "
            f"| {ratio:.3f} ({low:.3f} to {high:.3f}) | {row['rounds']} |"
        )


def _loss_lines(row: dict[str, Any]) -> Iterator[str]:
    ours = row["losses"]["ssl_fast"]
    for who, theirs in row["losses"].items():
        if who != "ssl_fast":
            apart = [abs(a - b) / abs(b) for a, b in zip(theirs, ours, strict=True)]
            far = next((str(step) for step, value in enumerate(apart, start=1) if value > 0.01), "none")
            yield (
                f"| {row['name']} | {who} | {ours[0]:.6f} | {theirs[0]:.6f} "
                f"| {max(apart[:10]):.1e} | {far} | {len(apart)} |"
            )


def _accuracy_lines(row: dict[str, Any]) -> Iterator[str]:
    ours, theirs = row["results"]["ssl_fast"], row["results"]["lightly"]
    for key in ours[0]:
        cells = []
        for results in (ours, theirs):
            values = [result[key] for result in results]
            cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
        apart = ", ".join(f"{b[key] - a[key]:+.4f}" for a, b in zip(ours, theirs, strict=True))
        yield (
            f"| {row['name']} | {row['about']['epochs']} | {len(ours)} | {key.replace('_', ' ')} "
            f"| {cells[0]} | {cells[1]} | {apart} |"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench train", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["simclr-small", "moco-v2-small"], metavar="RECIPE",
                        help=f"of {', '.join(COMPARABLE)}")  # fmt: skip
    parser.add_argument("--data", default="digits", help="as the trainer's, such as fashion-mnist:FOLDER")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--seeds", type=int, default=3, help="trainings for the accuracies; 0: times alone")
    parser.add_argument("--rounds", type=int, default=100, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/bench-train"), help="for results.json, results.md")
    options = parser.parse_args(arguments)
    for name, least in (("threads", 1), ("rounds", 1), ("seeds", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(options, name)}")
    try:
        for name in options.methods:
            recipe_of(name, options)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    about = measure.machine(options.threads) | {"date": datetime.date.today().isoformat()}
    about |= {"device": "cpu", "lightly": lightly.__version__, "data": options.data}
    limits = measure.limits(options.threads)
    rows: dict[Any, dict[str, Any]] = {}
    for row in rows_of(options):
        rows[row["suite"], row["name"], row.get("part")] = row
        found = list(rows.values())
        report.save(found, about, limits, options.output)  # after each: a run of an hour may end early
        text = markdown({"machine": about, "limits": limits, "rows": found})
        (options.output / "results.md").write_text(text)
    print(f"{text}\nsaved {options.output}/results.json and results.md")


if __name__ == "__main__":
    main()
