"""Where and how fast a run is carried out, and what it writes. The numbers of the method are in its recipe."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from typing import Literal

LEAST = {"devices": 1, "nodes": 1, "workers": 0, "evaluate_every": 0, "save_every": 0, "log_every": 1}


@dataclass(frozen=True)
class Settings:
    """How a run is carried out.

    Args:
        accelerator: As Lightning Fabric takes it: auto, cpu, cuda, ...
        devices: Devices of each node.
        nodes: Machines.
        precision: As Lightning Fabric takes it.
        workers: Processes that read and transform the images of a folder.
        compile: Whether torch.compile compiles the encoders.
        channels_last: Whether images and weights are stored with their channels last.
        cuda_graph: Whether forward and backward of a step are captured in a CUDA graph and replayed.
        evaluate_every: Epochs between two measurements of the features, the best of which gives best.pt; 0 measures
            about twelve times in a run.
        save_every: Epochs between two checkpoints that are kept (epoch-0010.pt); 0 keeps only last.pt and best.pt.
        log_every: Steps between two readings of the loss, at which the host waits for the device.
        wandb: The project of Weights & Biases to log to, if any.
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
        """Checks the values.

        Raises:
            ValueError: for a value that no run can have; the message begins with the field's name.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in LEAST and value < LEAST[field.name]:
                raise ValueError(f"{field.name}: expected at least {LEAST[field.name]}, got {value}")
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb: is not installed: pip install 'ssl-fast[wandb]'")
