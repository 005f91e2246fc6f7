"""How a run is carried out: where, how fast, what it writes. Nothing here is a number of the method's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from typing import Literal

LEAST = {"devices": 1, "nodes": 1, "workers": 0, "evaluate_every": 0, "save_every": 0, "log_every": 1}


@dataclass(frozen=True)
class Settings:
    """accelerator, devices, nodes, precision: as Lightning Fabric takes them; devices are those of a node.

    workers: processes that load and transform image folders. compile: the encoders, by torch.compile.
    channels_last: of images and weights. cuda_graph: the step is captured once and replayed.
    evaluate_every: epochs between two measurements of the features, 0 about twelve a run; best.pt is the best of them.
    save_every: epochs between two checkpoints that stay (epoch-0010.pt); 0 keeps last.pt and best.pt only.
    log_every: steps between two looks at the loss, for which the host waits.
    wandb: also log to this project of Weights & Biases.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    workers: int = 4
    compile: bool = False
    channels_last: bool = False
    cuda_graph: bool = False
    evaluate_every: int = 0
    save_every: int = 0
    log_every: int = 50
    wandb: str | None = None

    def check(self) -> None:
        """Raises ValueError, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in LEAST and value < LEAST[field.name]:
                raise ValueError(f"{field.name}: expected at least {LEAST[field.name]}, got {value}")
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb: is not installed: pip install 'ssl-fast[wandb]'")
