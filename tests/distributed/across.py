"""What the processes of the distributed tests do: a rank's part of a batch, and how far it is from the whole."""

import torch
import torch.distributed as dist

import ssl_fast
from bench.ring import count_sent
from ssl_fast.parallel.group import Ring
from tests.helpers.loss_cases import ALL_CASES, arguments_of, gradients_of, loss_of

IN_BATCH = [
    case for case in ALL_CASES if not case.endswith(("shared", "own", "queue")) and case != "instance_discrimination"
]
# A Ring does not gather what these need.
GATHERED = [case for case in IN_BATCH if case.startswith(("supcon", "siglip"))]


def part(x, own: slice):
    """The rank's rows of an argument; options as they are."""
    if isinstance(x, tuple):  # the same ids twice
        return (part(x[0], own),) * 2
    return x[own].clone() if isinstance(x, torch.Tensor) else x


def wide(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def with_gradients(case, backend, arguments, **options):
    """(loss, statistics, gradients, that of the temperature last)."""
    arguments = {
        name: x.requires_grad_() if name in gradients_of(case) else x for name, x in arguments.items()
    }  # fmt: skip
    temperature = torch.full((), 0.2, dtype=torch.float64, requires_grad=True)
    loss, stats = loss_of(case, backend, arguments, temperature, return_stats=True, **options)
    loss.backward()
    return loss.detach(), stats, [arguments[name].grad for name in gradients_of(case)] + [temperature.grad]


def sum_over_ranks(x):
    x = x.clone()
    dist.all_reduce(x)
    return x


def error(got, expected, least: float = 1e-3) -> float:
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(least)).item()


def errors_of_losses(rank, world, counts, backend, dtype) -> dict:
    """For each case and kind of group: the largest errors of loss, gradients and statistics, or the refusal."""
    found, own = {}, slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    for case in IN_BATCH:
        whole = arguments_of(case, count=sum(counts), dim=9, dtype=dtype)
        expected = with_gradients(case, "reference", {name: wide(part(x, slice(None))) for name, x in whole.items()})
        for name, group in (("gather", dist.group.WORLD), ("ring", Ring())):
            try:
                mine = {key: part(x, own) for key, x in whole.items()}
                loss, stats, gradients = with_gradients(case, backend, mine, group=group)
            except ValueError as refusal:
                found[case, name] = str(refusal)
                continue
            # DistributedDataParallel takes the mean over the ranks.
            errors = [error(sum_over_ranks(loss) / world, expected[0])]
            errors += [error(x / world, y[own]) for x, y in zip(gradients[:-1], expected[2][:-1], strict=True)]
            # The temperature's sums similarities over its square, 25, of both signs.
            errors.append(error(sum_over_ranks(gradients[-1]) / world, expected[2][-1], least=1.0))
            found[case, name] = max(errors), error(torch.stack(stats), torch.stack(expected[1]))
    return found


def reductions(rank, world, counts) -> list[float]:
    """Rows as they are, and their sum."""
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    z1, z2 = torch.randn(2, sum(counts), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = ssl_fast.functional.nt_xent(z1, z2, 0.2, reduction="none").view(2, -1)[:, own].flatten()
    rows, total = (
        ssl_fast.functional.nt_xent(z1[own], z2[own], 0.2, reduction=reduction, group=dist.group.WORLD)
        for reduction in ("none", "sum")
    )
    return [error(rows, expected), error(total, expected.sum())]


def fill_queues(rank, world, batches) -> list:
    """Queues after batches of each rank's own numbers: (rows, ids, pointer)."""
    queue = ssl_fast.NegativeQueue(11, 1, seed=0, ids=True)
    for counts in batches:
        keys = (100.0 * rank + torch.arange(counts[rank]))[:, None]
        queue.enqueue_(keys, ids=keys[:, 0].long(), group=dist.group.WORLD)
    return queue.queue[:, 0].tolist() + queue.queue_ids.tolist() + queue.queue_ptr.tolist()


def shuffled(rank, world, counts) -> tuple:
    """(what the rank got of all images, whether its own came back)."""
    from ssl_fast.parallel.shuffle import shuffle, unshuffle

    torch.manual_seed(rank)
    images = (100.0 * rank + torch.arange(counts[rank]))[:, None].expand(-1, 3)
    here, order = shuffle(images, dist.group.WORLD)
    back = unshuffle(2 * here, order, dist.group.WORLD)
    return here[:, 0].tolist(), torch.equal(back, 2 * images), order.tolist()


def small_checks(rank, world, counts) -> dict:
    """What takes no time, in one set of processes."""
    batches = [(2, 2, 2), counts, (1, 2, 4), (9, 8, 9)]
    return {
        "reductions": reductions(rank, world, counts),
        "queues": [fill_queues(rank, world, batches[:number]) for number in range(1, 5)],
        "shuffled": shuffled(rank, world, counts),
        "compiled": compiled_step(rank, world),
        "ddp": ddp_errors(rank, world, counts),
        "bytes": bytes_sent(rank, world, 10, 4),
    }


def leave_before_the_loss(rank, world):
    """The last rank ends; the others find out."""
    if rank == world - 1:
        raise SystemExit("gone")
    z = torch.randn(2, 4, 3)
    ssl_fast.functional.nt_xent(*z, group=dist.group.WORLD)


def compiled_step(rank, world) -> float:
    """The largest difference of a compiled loss's value and gradient from the eager ones."""

    def loss(z1, z2):
        return ssl_fast.functional.nt_xent(z1, z2, 0.2, group=dist.group.WORLD)

    compiled, differences = torch.compile(loss, fullgraph=True, backend="aot_eager"), []
    for seed in range(2):
        results = []
        for function in (loss, compiled):
            z = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(10 * seed + rank)).requires_grad_()
            value = function(*z)
            value.backward()
            results.append((value.detach(), z.grad))
        differences += [(x - y).abs().max().item() for x, y in zip(*results, strict=True)]
    return max(differences)


def encoder(dim=7):
    torch.manual_seed(0)
    layers = torch.nn.Linear(dim, 12), torch.nn.ReLU(), torch.nn.Linear(12, 5)
    return torch.nn.Sequential(*layers).double()


def images(count, dim=7):
    return torch.randn(2, count, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def parameter_error(model, own: slice, counts, group) -> float:
    """How far the parameters' gradients of a wrapped model are from those of the whole batch in one process."""
    plain, x = encoder(), images(sum(counts))
    ssl_fast.functional.nt_xent(*plain(x.flatten(0, 1)).chunk(2), 0.2).backward()
    ssl_fast.functional.nt_xent(*model(x[:, own].flatten(0, 1)).chunk(2), 0.2, group=group).backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return max(error(got.grad, expected.grad) for got, expected in pairs)


def ddp_errors(rank, world, counts) -> list[float]:
    """Through DistributedDataParallel, gathered and round a ring."""
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    models = (torch.nn.parallel.DistributedDataParallel(encoder()) for _ in range(2))
    groups = (dist.group.WORLD, Ring())
    return [parameter_error(model, own, counts, group) for model, group in zip(models, groups, strict=True)]


def bytes_sent(rank, world, rows, dim) -> dict:
    """What a rank sends for InfoNCE in the batch, forward and backward."""
    sent = count_sent()
    found = {}
    for name, group in (("gather", dist.group.WORLD), ("ring", Ring())):
        sent |= dict.fromkeys(sent, 0)
        query, key = torch.randn(2, rows, dim).unbind()
        key.requires_grad_()
        ssl_fast.functional.info_nce(query.requires_grad_(), key, group=group).backward()
        found[name] = dict(sent)
    return found
