"""A step under torchrun: `torchrun --nproc-per-node 2 step.py ddp|fabric`. Prints how far the gradients are off."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
import across  # noqa: E402


def main(kind: str) -> None:
    if kind == "fabric":
        from lightning.fabric import Fabric

        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        model = fabric.setup_module(across.encoder())
    else:
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(across.encoder())
    rank, counts = dist.get_rank(), (6, 6)
    own = slice(6 * rank, 6 * rank + 6)
    print("error", across.parameter_error(model, own, counts, dist.group.WORLD), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
