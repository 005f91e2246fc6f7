"""Checks of the momentum update and of the queue.

Each function takes the run of `launch.simulated` that it is called in: the update reads tensors by their addresses in a
table, of which the simulator must be told.
"""

import itertools

import torch
from torch import Tensor

from ssl_fast import reference
from ssl_fast.kernels import ema, enqueue
from tests.helpers import enqueue_cases
from tests.helpers.averages import assert_averaged
from tests.helpers.strategies import DTYPES

from .launch import Run

# Around one and two programs' blocks of 2048.
SIZES = (1, 7, 16, 100, 2047, 2048, 2049, 5000, 4096)
INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.int16, torch.int8)


def _made(size: int, dtype: torch.dtype, offset: int, generator: torch.Generator) -> Tensor:
    """offset: elements by which the tensor does not begin where its memory does."""
    if dtype.is_floating_point:
        return torch.randn(size + offset, generator=generator).to(dtype)[offset:]
    return torch.randint(-(2**40), 2**40, (size + offset,), generator=generator).to(dtype)[offset:]


def _lists(which: str, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Pairs of target and source."""
    float32, bfloat16 = torch.float32, torch.bfloat16
    every_pair = list(zip(itertools.product(DTYPES, DTYPES), itertools.cycle(SIZES), strict=False))

    def pairs(specification, offsets: tuple[int, int] = (0, 0)) -> list[tuple[Tensor, Tensor]]:
        return [
            tuple(_made(size, dtype, offset, generator) for dtype, offset in zip(dtypes, offsets, strict=True))
            for dtypes, size in specification
        ]

    return {
        "float32": lambda: pairs([((float32, float32), size) for size in SIZES]),
        "every pair of dtypes": lambda: pairs(every_pair),
        "unaligned": lambda: pairs(every_pair, (1, 3)),
        "integers": lambda: pairs([((dtype, dtype), size) for dtype, size in zip(INTEGERS, SIZES, strict=False)]),
        "many": lambda: pairs([((float32, bfloat16), 3)] * 300),
        "bfloat16": lambda: pairs(
            [((bfloat16, dtype), size) for dtype in DTYPES[:1] + DTYPES[2:] for size in (5, 3000)]
        ),
    }[which]()


def average(
    run: Run, which: str, momentum: float = 0.99, on_device: bool = False, seeded: bool = False, seed: int = 0
) -> None:
    """ema_update_ of one of `_lists`. on_device: the momentum is a tensor. seeded: rounded at random, by a seed."""
    pairs = _lists(which, torch.Generator().manual_seed(seed))
    target, source = [t for t, _ in pairs], [s for _, s in pairs]
    before, source_before = [t.clone() for t in target], [s.clone() for s in source]
    bits = torch.tensor([123456789012345 + seed]) if seeded else None
    given = torch.tensor(momentum, dtype=torch.float64) if on_device else None
    run.reached = (*target, *source)
    ema.ema_update_(target, source, momentum, given, bits)
    by_reference = [t.clone() for t in before]
    reference.ema_update_(by_reference, source, momentum, bits)
    for got, old, new, same, untouched in zip(target, before, source, by_reference, source_before, strict=True):
        assert torch.equal(new, untouched)
        if not got.is_floating_point():
            assert torch.equal(got, new)
        elif seeded and got.dtype == torch.bfloat16:
            # Where float32 rounds otherwise, the other neighbour may be drawn, seldom.
            assert (got == same).float().mean() > 0.99
            assert (got.double() - same.double()).abs().max() <= 2**-7 * same.double().abs().max()
        else:
            assert_averaged(got, old, new, momentum)


def average_of_special_values(run: Run) -> None:
    """Infinities, NaN, numbers below the normal ones: the reference's, bit for bit where nothing is rounded."""
    inf, nan = float("inf"), float("nan")
    target = torch.tensor([0.0, inf, nan, 1e38, -1e-40, -inf, 1.0] * 20)
    source = torch.tensor([inf, 1.0, 2.0, 3e38, 1e-42, -inf, nan] * 20)
    for momentum in (0.99, 1.0, 0.0):
        got, expected = target.clone(), target.clone()
        run.reached = (got, source)
        ema.ema_update_([got], [source], momentum)
        reference.ema_update_([expected], [source], momentum)
        torch.testing.assert_close(got, expected, rtol=3e-7, atol=3e-45, equal_nan=True)


def write(run: Run, normalize: bool = False, **case) -> None:
    """enqueue_ of a case of enqueue_cases: the reference's bits, and nothing beside the queue changes."""
    case = enqueue_cases.Case(**case)
    if not normalize:
        enqueue_cases.check(case, interpreted=False, run=enqueue.enqueue_)
        return
    generator = torch.Generator().manual_seed(case.seed)
    queue = torch.randn(case.size, case.dim, generator=generator).to(case.queue_dtype)
    keys = torch.randn(case.count, case.dim, generator=generator).mul(2).to(case.keys_dtype)
    place, expected = torch.tensor([case.pointer]), queue.double()
    place_expected = place.clone()
    reference.enqueue_(expected, place_expected, keys.double(), True)
    enqueue.enqueue_(queue, place, keys, True)
    assert torch.equal(place, place_expected)
    wide = torch.float64 if torch.float64 == case.keys_dtype else torch.float32
    allowed = 2 * torch.finfo(wide).eps + torch.finfo(case.queue_dtype).eps
    assert (queue.double() - expected).abs().max() <= allowed
