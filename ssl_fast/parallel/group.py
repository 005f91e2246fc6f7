"""The argument `group=` of the losses: a process group, a `Ring` over one, or None for this process alone.

Here are only its type and its check. What it changes is chosen in `batch.py`, by `batch_of`: the rows of this process
alone (`local.py`), of all ranks gathered (`gathered.py`) or of all ranks round the ring (`ring.py`). Losses ask for it
in `functional/_dispatch.py`, where `Request.batch` then computes, reduces, and says which rows the reference gets.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


class Ring:
    """A group whose ranks pass their rows round instead of gathering them: `loss(..., group=Ring(group))`.

    A rank holds its own rows and one other rank's at a time, forward and backward, and computes while the next
    arrive: for batches whose gathered embeddings are too many. Same numbers as with the group itself.
    group: a process group; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group


def all_processes() -> dist.ProcessGroup | None:
    """The default group; None where this process is alone."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None


def check_group(group: object) -> None:
    if torch.compiler.is_compiling():  # it is no ProcessGroup there
        return
    if not isinstance(group, (dist.ProcessGroup, Ring)):
        raise TypeError(f"group: expected a ProcessGroup, a Ring or None, got {type(group).__name__}")
    if not dist.is_initialized():
        raise ValueError("group: expected torch.distributed to be initialized")
