"""Times on a GPU beside others, for bench/gpu_report.sh: `python -m bench.gpu losses|moves|step --output FOLDER`.

Medians of CUDA-event times by triton.testing.do_bench, one process, peers beside ours in one run. With
TRITON_INTERPRET=1 a dry run: the same code on CPU tensors, tiny, without times worth anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import time
from functools import partial
from pathlib import Path

import torch

import ssl_fast
from bench import peers
from ssl_fast import NegativeQueue, backends, functional

DRY = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if DRY else "cuda"
TEMPERATURE = 0.1
# Rows whose matrices a peer would have to store: beyond, only ours runs.
LARGEST_STORED = 32768


def milliseconds(run) -> float:
    """The median time of a call."""
    if DRY:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return do_bench(run, warmup=20, rep=80, return_mode="median")


def added_megabytes(run) -> float:
    if DRY:
        return math.nan
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def step_of(loss, inputs):
    def step():
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    return step


def graph_of(run):
    """A replay of what run() launches: the time without the host's share."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _row(about: dict, losses: dict, inputs: list, flops: float) -> dict:
    """Ours and the peers, each the forward and backward pass; a peer that fails says how."""
    row = {**about, "milliseconds": {}, "megabytes": {}, "failed": {}}
    for name, loss in losses.items():
        step = step_of(loss, inputs)
        try:
            row["milliseconds"][name] = milliseconds(step)
            row["megabytes"][name] = added_megabytes(step)
            if name == "ssl_fast" and not DRY:
                row["milliseconds"]["ssl_fast, graph"] = milliseconds(graph_of(step))
        except Exception as error:
            row["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            if name == "ssl_fast":
                raise
    ours = row["milliseconds"].get("ssl_fast, graph", row["milliseconds"]["ssl_fast"])
    row["teraflops"] = flops / ours / 1e9
    print(json.dumps(row), flush=True)
    return row


def _external(rows: int, dim: int) -> dict:
    """Losses of other shapes for scale, where they are installed: one view against the other."""
    found = {}
    try:
        inf_cl = importlib.import_module("inf_cl")
        found["inf-cl (N x N)"] = lambda a, b: inf_cl.cal_flash_loss(a, b, torch.tensor(1 / TEMPERATURE, device=DEVICE))
    except ImportError:
        pass
    return found


def losses(rows_of: list[int], queues: list[int]) -> list[dict]:
    rows = []
    settings = [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee")]
    for count in rows_of:
        for dim in (64, 128, 256, 512) if count <= 8192 else (128,):
            for dtype, precision in settings:
                torch.backends.cuda.matmul.fp32_precision = precision
                z = [torch.randn(count // 2, dim, device=DEVICE).to(dtype).requires_grad_() for _ in range(2)]
                runs = {"ssl_fast": lambda a, b: functional.nt_xent(a, b, TEMPERATURE)}
                if count <= LARGEST_STORED:
                    runs |= peers.nt_xent_peers(max(count, 512), TEMPERATURE) | _external(count, dim)
                about = {"work": "nt_xent", "N": count, "D": dim, "dtype": str(dtype)[6:], "products": precision}
                rows.append(_row(about, runs, z, 4.0 * count * count * dim))
    for count in (256, 1024) if not DRY else (16,):
        for size in queues:
            for dim in (128, 256):
                for dtype, precision in settings:
                    torch.backends.cuda.matmul.fp32_precision = precision
                    query = torch.randn(count, dim, device=DEVICE).to(dtype).requires_grad_()
                    key = torch.randn(count, dim, device=DEVICE).to(dtype)
                    queue = NegativeQueue(size, dim, dtype=dtype, seed=0).to(DEVICE)
                    runs = {"ssl_fast": lambda q, k, queue=queue: functional.info_nce(q, k, queue, TEMPERATURE)}
                    runs |= peers.info_nce_peers(queue.queue, TEMPERATURE)
                    about = {"work": "info_nce", "N": count, "K": size, "D": dim}
                    about |= {"dtype": str(dtype)[6:], "products": precision}
                    rows.append(_row(about, runs, [query, key], 4.0 * count * size * dim))
    return rows


def moves() -> list[dict]:
    """The momentum update and the enqueue in CUDA C++ and in Triton, and the update as a share of what a copy moves."""
    import torchvision.models

    rows, copy = [], math.nan
    if not DRY:
        source, target = torch.randn(2, 1 << 28, device=DEVICE).unbind()
        copy = 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e6
        print(f"copy: {copy:.0f} GB/s read and written", flush=True)
    for builder in ("resnet18",) if DRY else ("resnet50", "vit_b_16"):
        for dtypes in (
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.bfloat16, torch.bfloat16),
        ):
            target, source = (
                [p.detach().to(DEVICE, dtype) for p in torchvision.models.get_model(builder).parameters()]
                for dtype in dtypes
            )
            rows.append(_ema_row(builder, target, source, copy))
    for size in (4096, 65536):
        queue, keys = NegativeQueue(size, 128, seed=0).to(DEVICE), torch.randn(256, 128, device=DEVICE)
        for normalize in (False, True):
            run = partial(queue.enqueue_, keys, normalize)
            rows.append(
                {"work": "enqueue", "K": size, "normalize": normalize, "milliseconds": _by_backends("enqueue_", run)}
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _by_backends(operator: str, run) -> dict[str, float]:
    """Ours by each backend that is there, eagerly and in a graph; "ssl_fast" is the one that is chosen by itself."""
    times = {"ssl_fast": milliseconds(run)}
    if DRY:
        return times
    times["ssl_fast, graph"] = milliseconds(graph_of(run))
    for name in ("cuda", "triton"):
        if not backends.why_not(operator, name, DEVICE):
            with ssl_fast.backend(name):
                times[name], times[f"{name}, graph"] = milliseconds(run), milliseconds(graph_of(run))
    return times


def _ema_row(builder: str, target: list, source: list, copy: float) -> dict:
    count = sum(p.numel() for p in target)
    dtypes = [str(x[0].dtype)[6:] for x in (target, source)]
    row = {"work": "ema", "model": builder, "parameters": count, "target": dtypes[0], "source": dtypes[1]}
    runs = peers.ema_peers(target, source, 0.999) if len(set(dtypes)) == 1 else {}  # they take one dtype
    row["milliseconds"] = {name: milliseconds(run) for name, run in runs.items() if name != "ssl_fast"}
    row["milliseconds"] |= _by_backends("ema_update_", lambda: ssl_fast.ema_update_(target, source, 0.999))
    flat = [[torch.cat([x.flatten() for x in tensors])] for tensors in (target, source)]
    row["milliseconds"]["one flat tensor"] = milliseconds(lambda: ssl_fast.ema_update_(*flat, 0.999))
    if target[0].dtype == torch.bfloat16:
        seed = torch.zeros((), dtype=torch.int64, device=DEVICE)
        run = partial(ssl_fast.ema_update_, target, source, 0.999, seed=seed)
        row["milliseconds"]["rounded at random"] = milliseconds(run)
    moved = count * (2 * target[0].element_size() + source[0].element_size())
    row["share of copy"] = moved / row["milliseconds"].get("ssl_fast, graph", math.nan) / 1e6 / copy
    print(json.dumps(row), flush=True)
    return row


def step() -> list[dict]:
    """A training step of ResNet-50 (SimCLR, MoCo v2), and what loss, momentum update and queue take of it."""
    batch, side, builder = (4, 32, "resnet18") if DRY else (128, 224, "resnet50")
    rows = []
    for method in ("simclr", "moco-v2"):
        rows.append({"work": "step", "method": method, "batch": batch, "encoder": builder})
        rows[-1]["milliseconds"] = _step_times(method, batch, side, builder)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _step_times(method: str, batch: int, side: int, builder: str) -> dict[str, float]:
    import torchvision.models

    moco = method == "moco-v2"
    encoder, key_encoder = (torchvision.models.get_model(builder, num_classes=128).to(DEVICE) for _ in range(2))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    queue = NegativeQueue(128 if DRY else 65536, 128, seed=0).to(DEVICE)
    images = torch.randn(2, batch, 3, side, side, device=DEVICE)
    embeddings = [torch.randn(batch, 128, device=DEVICE).bfloat16().requires_grad_() for _ in range(2)]

    def loss_of(a, b):
        return functional.info_nce(a, b, queue, 0.2) if moco else functional.nt_xent(a, b, 0.1)

    def ema():
        ssl_fast.ema_update_(key_encoder, encoder, 0.999)

    def whole():
        with torch.autocast(DEVICE, torch.bfloat16):
            query = encoder(images[0])
            if moco:
                with torch.no_grad():
                    ema()
                    other = key_encoder(images[1])
            else:
                other = encoder(images[1])
        loss = loss_of(query, other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if moco:
            queue.enqueue_(other, normalize=True)

    times = {"step": milliseconds(whole), "loss": milliseconds(step_of(loss_of, embeddings))}
    if moco:
        times["ema"] = milliseconds(ema)
        times["queue"] = milliseconds(lambda: queue.enqueue_(embeddings[0].detach(), normalize=True))
    return times


def environment() -> dict:
    import triton

    about = {"torch": torch.__version__, "triton": triton.__version__, "ssl_fast": ssl_fast.__version__, "dry run": DRY}
    if not DRY:
        properties = torch.cuda.get_device_properties(0)
        about |= {"device": properties.name, "processors": properties.multi_processor_count}
        about |= {"cuda": torch.version.cuda, "memory": properties.total_memory}
    return about


def markdown(folder: Path) -> str:
    """One table of all results in the folder; times as multiples of ours."""
    lines = [f"# GPU report\n\n{json.loads((folder / 'environment.json').read_text())}\n"]
    for path in sorted(folder.glob("bench-*.json")):
        lines.append(f"\n## {path.stem[6:]}\n")
        lines.append("| work | ours, ms (in a graph) | others, times as long | MB added | TFLOP/s |")
        lines.append("|---|---|---|---|---|")
        for row in json.loads(path.read_text()):
            times = dict(row["milliseconds"])
            ours, graph = times.pop("ssl_fast", times.get("step")), times.pop("ssl_fast, graph", None)
            work = " ".join(f"{k}={v}" for k, v in row.items() if not isinstance(v, dict | float))
            others = ", ".join(f"{name} {value / (graph or ours):.2f}" for name, value in times.items())
            others += "".join(f", {name}: {why}" for name, why in row.get("failed", {}).items())
            memory = row.get("megabytes", {}).get("ssl_fast", math.nan)
            inside = "" if graph is None else f" ({graph:.3f})"
            rate = row.get("teraflops", math.nan)
            lines.append(f"| {work} | {ours:.3f}{inside} | {others} | {memory:.1f} | {rate:.1f} |")
    return "\n".join(lines) + "\n"


def write(path: Path, contents: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(contents)
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("stage", choices=["environment", "small", "large", "moves", "step", "markdown"])
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    if DRY:
        ssl_fast.kernels.register("CPU")
    stages = {
        "small": lambda: losses([32] if DRY else [256, 1024, 4096, 8192], []),
        "large": lambda: losses([] if DRY else [32768, 65536, 131072], [64] if DRY else [4096, 65536]),
        "moves": moves,
        "step": step,
    }
    if asked.stage == "environment":
        write(asked.output / "environment.json", json.dumps(environment(), indent=1) + "\n")
    elif asked.stage == "markdown":
        write(asked.output / "report.md", markdown(asked.output))
    else:
        with ssl_fast.backend("triton" if asked.stage in ("small", "large") else "auto"):
            rows = stages[asked.stage]()
        write(asked.output / f"bench-{asked.stage}.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
