"""Runs a function in several gloo processes on this machine: `results = run(3, function, *arguments)`."""

import os
import socket
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _work(rank, world, port, function, arguments, answers, timeout):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timeout)
        answers.put((rank, function(rank, world, *arguments), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        sys.exit(1)


def run(world: int, function, *arguments, timeout: timedelta = TIMEOUT, may_fail: bool = False) -> list:
    """What function(rank, world, *arguments) gives in each of `world` processes; with may_fail an error's text.

    What it returns must be of numbers, strings and the like: tensors of a process that ended are gone.
    """
    context = mp.get_context("spawn")
    answers, port = context.SimpleQueue(), _free_port()
    processes = [
        context.Process(target=_work, args=(rank, world, port, function, arguments, answers, timeout))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = {rank: rest for rank, *rest in (answers.get() for _ in range(world))}
    for process in processes:
        process.join()
    errors = {rank: error for rank, (_, error) in found.items() if error}
    assert may_fail or not errors, "\n".join(errors.values())
    return [errors.get(rank, found[rank][0]) for rank in range(world)]
