"""The list of what is simulated: every operator in every kind of arithmetic, a fast part and the whole.

A case is one operator's problem on one machine. Compiling is nine tenths of the time: sizes are chosen so that cases
share kernels (Triton compiles anew for an integer that is 1, or a multiple of 16), and none of 37, 75, 40 is one.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.helpers.enqueue_cases import LAYOUTS as QUEUE_LAYOUTS
from tests.helpers.strategies import DTYPES, LAYOUTS
from tests.helpers.strategies import KINDS as VALUES

from . import losses, similarities, updates
from .kinds import MIXED, PLAIN, arithmetic
from .launch import USUAL, Machine, simulated

FORMS = ("with each other", "one way", "both ways")
WIDTHS = (3, 40, 128, 200, 300)  # padded to 16, 64, 128, 256; the last by chunks
COUNTS = (3, 17, 37, 130)
TEMPERATURES = (1.0, 0.1, 0.02)


class Case(NamedTuple):
    """check: of losses.py or similarities.py with the name of the kind, or of updates.py with the run."""

    operator: str
    kind: str
    check: Callable[..., None]
    options: dict[str, Any]
    machine: Machine = USUAL

    def __str__(self) -> str:
        usual = USUAL._asdict()
        unusual = {name: value for name, value in self.machine._asdict().items() if value != usual[name]}
        options = {**self.options, **unusual}
        words = [f"{name} {value}" for name, value in options.items() if name != "case" and value is not False]
        return ", ".join([self.check.__name__, str(self.options.get("case", self.operator)), self.kind, *words])

    def run(self, **options: Any) -> None:
        """Raises AssertionError, or the simulator's Fault, where something is wrong. options: of `simulated`."""
        with arithmetic(self.kind), simulated(self.machine, **options) as run:
            self.check(run if self.check.__module__ == updates.__name__ else self.kind, **self.options)

    def on(self, device: str) -> "Case":
        return self._replace(machine=self.machine._replace(device=device))


def _loss(kind: str, case: str, machine: Machine = USUAL, check=losses.loss, **options: Any) -> Case:
    return Case(case.partition(" ")[0], kind, check, {"case": case, **options}, machine)


def _loss_of_half_queries(kind: str, **options: Any) -> Case:
    return Case("info_nce", kind, losses.half_queries_beside_a_float32_queue, options)


def _lse(kind: str, form: str, machine: Machine = USUAL, **options: Any) -> Case:
    return Case("similarity_lse", kind, similarities.lse, {"form": form, **options}, machine)


def _softplus(kind: str, machine: Machine = USUAL, **options: Any) -> Case:
    return Case("similarity_softplus", kind, similarities.softplus, options, machine)


def _pairs(kind: str, machine: Machine = USUAL, **options: Any) -> Case:
    return Case("pair_similarity", kind, similarities.pairs, options, machine)


def _classes(kind: str, machine: Machine = USUAL, **options: Any) -> Case:
    return Case("class_similarity", kind, similarities.classes, options, machine)


def _average(which: str, machine: Machine = USUAL, **options: Any) -> Case:
    return Case("ema_update_", "ieee", updates.average, {"which": which, **options}, machine)


def _write(machine: Machine = USUAL, **options: Any) -> Case:
    return Case("enqueue_", "ieee", updates.write, options, machine)


SHUFFLED = Machine(seed=7, interleaved=4)


def fast() -> list[Case]:
    """Every kernel, operator and kind of arithmetic at least once, most of them on sm_80."""
    sm_90 = Machine("sm_90")
    return [
        _loss("ieee", "nt_xent", learnt=True, statistics=True),
        _loss("bfloat16", "nt_xent", SHUFFLED, learnt=True),
        _loss("tf32", "nt_xent", sm_90),
        # Of such a width that the queue is read where it lies.
        _loss("float64", "info_nce queue", dim=64),
        _loss("tf32", "info_nce shared", statistics=True),
        _loss("float16", "info_nce in batch", sm_90),
        _loss("bfloat16, float32 queue", "info_nce queue"),
        _loss_of_half_queries("bfloat16, float32 queue", dim=40),
        _loss("ieee", "info_nce own", negatives=9, statistics=True),
        _loss("float16", "info_nce own", Machine(vary_winning_lane=True), negatives=9),
        _loss("bfloat16", "nt_xent", dim=300),
        _loss("tf32", "info_nce shared", check=losses.equal_rows_tie),
        _lse("float16", "both ways", ranks=True, mask=1),
        _lse("bfloat16", "one way", SHUFFLED, mask=2),
        _lse("tf32", "with each other", mask=3),
        _softplus("bfloat16", ranks=True, learnt=True),
        _pairs("float64"),
        _classes("ieee"),
        _average("every pair of dtypes"),
        _average("bfloat16", seeded=True),
        _write(SHUFFLED, size=20, dim=33, count=31, pointer=-3, keys_layout="transposed"),
        _write(size=20, dim=1025, count=31, pointer=7, normalize=True),
        _write(size=20, dim=33, count=31, pointer=7, normalize=True),
    ]


def _of_losses(draw: random.Random) -> list[Case]:
    out = []
    # A temperature on the device takes both forms of the softmax with one set of kernels.
    full = {"learnt": True, "statistics": True, "reduction": "mean"}
    cases = ("nt_xent", "info_nce in batch", "info_nce shared", "info_nce queue", "info_nce own")
    for kind, dim, case in itertools.product(PLAIN, WIDTHS, cases):
        for count in draw.sample(COUNTS, 2 if dim == 40 else 1):
            sizes = {"count": count, "negatives": draw.choice((5, 33) if case == "info_nce own" else (75, 300))}
            out.append(_loss(kind, case, dim=dim, temperature=draw.choice(TEMPERATURES), seed=count, **sizes, **full))
    for kind, case, temperature in itertools.product(PLAIN, cases, (0.1, 0.02)):
        reduction = draw.choice(("none", "sum"))
        out.append(_loss(kind, case, count=17, negatives=33, temperature=temperature, reduction=reduction))
    for kind, dim, temperature in itertools.product(MIXED, (40, 128), (0.2, 0.07)):
        out.append(_loss(kind, "info_nce queue", dim=dim, temperature=temperature, statistics=True))
        out.append(_loss_of_half_queries(kind, dim=dim, temperature=temperature))
    for kind, case in itertools.product(
        ("tf32", "bfloat16"), ("supcon", "supcon in", "clip", "siglip", "dcl", "moco_v3")
    ):
        out.append(_loss(kind, case))
    return out


def _of_similarities(draw: random.Random) -> list[Case]:
    out = []
    for kind, mask, form in itertools.product(PLAIN, range(4), FORMS):
        ranks = form == "both ways"
        options = {"n": draw.choice(COUNTS), "m": draw.choice((3, 75, 130)), "dim": draw.choice((40, 40, 128, 300))}
        temperature = draw.choice(TEMPERATURES)
        out.append(_lse(kind, form, mask=mask, ranks=ranks, temperature=temperature, learnt=True, **options))
    for kind, form in itertools.product(PLAIN, FORMS):
        # Rows as they are have dots of any size.
        out.append(_lse(kind, form, normalize=(True, False), temperature=5.0))
        out.append(_lse(kind, form, normalize=(False, False), temperature=5.0, dim=16))
    for kind, dim in itertools.product(PLAIN, (40, 128, 300)):
        for n, temperature, bias in ((17, 0.1, -10.0), (130, 1.0, 1.5)):
            out.append(_softplus(kind, n=n, dim=dim, temperature=temperature, bias=bias, learnt=True, ranks=True))
    for kind, dim in itertools.product(PLAIN, WIDTHS):
        out.append(_pairs(kind, n=draw.choice(COUNTS), dim=dim, normalize=(True, draw.random() < 0.6)))
        out.append(_classes(kind, n=draw.choice(COUNTS), dim=dim))
    out += [Case("similarity_lse", kind, similarities.lse_without_pairs, {}) for kind in PLAIN]
    return out


def _of_updates(draw: random.Random) -> list[Case]:
    lists = ("float32", "every pair of dtypes", "unaligned", "integers", "many", "bfloat16")
    out = [_average(which, momentum=m, on_device=on) for which in lists for m, on in ((0.99, False), (0.9, True))]
    out += [_average("bfloat16", seeded=True, seed=seed) for seed in (1, 2)]
    out += [_average("every pair of dtypes", machine=SHUFFLED, momentum=m) for m in (0.0, 1.0)]
    out.append(Case("ema_update_", "ieee", updates.average_of_special_values, {}))
    layouts = itertools.cycle(QUEUE_LAYOUTS)
    for queue_dtype, keys_dtype, layout in zip(DTYPES * 4, [x for x in DTYPES for _ in DTYPES], layouts, strict=False):
        size = draw.choice((1, 7, 64, 100))
        options = {
            "size": size, "dim": draw.choice((1, 3, 40, 128, 129, 1025)), "count": draw.choice((1, 7, 64, 120, 250)),
            "pointer": draw.choice((0, size - 1, -3, 5 * size + 1)), "queue_dtype": queue_dtype,
            "keys_dtype": keys_dtype,
        }  # fmt: skip
        out.append(_write(SHUFFLED, queue_layout=draw.choice(tuple(QUEUE_LAYOUTS)), keys_layout=layout, **options))
    for queue_dtype, keys_dtype in itertools.product(DTYPES, DTYPES):
        options = {"queue_dtype": queue_dtype, "keys_dtype": keys_dtype, "dim": draw.choice((3, 40, 129, 1025))}
        out.append(_write(SHUFFLED, normalize=True, size=20, count=31, pointer=7, **options))
    return out


def _of_schedules(draw: random.Random) -> list[Case]:
    """Groups of tiles, pieces of walks, chunks of wide rows; blocks and warps in any order; what devices leave open."""
    out = []
    full = {"learnt": True, "statistics": True, "reduction": "mean"}
    for kind in PLAIN:
        for machine in (Machine(slots=2), Machine(slots=1, seed=5, interleaved=3)):
            out.append(_loss(kind, "nt_xent", machine, count=150, dim=128, **full))
            out.append(_softplus(kind, machine, n=150, dim=40, ranks=True, learnt=True))
            out.append(_lse(kind, "both ways", machine, n=150, dim=40, mask=2, ranks=True, learnt=True))
            out.append(_lse(kind, "with each other", machine, n=150, dim=40, mask=3, learnt=True))
        for elements, case in itertools.product((3000, 20000), ("nt_xent", "info_nce queue")):
            out.append(_loss(kind, case, Machine(chunk_elements=elements), count=70, negatives=130, dim=300, **full))
        # Many keys: a walk is cut into pieces.
        out.append(_loss(kind, "info_nce queue", SHUFFLED, count=150, negatives=1501, dim=128, **full))
        out.append(_loss(kind, "info_nce shared", SHUFFLED, count=37, negatives=1501, **full))
        for options in ({"inexact_approximations": True}, {"contract": True}, {"vary_winning_lane": True}):
            for case in ("nt_xent", "info_nce queue", "info_nce own"):
                out.append(_loss(kind, case, Machine(**options), negatives=33, **full))
            out.append(_softplus(kind, Machine(**options), ranks=True, learnt=True))
        for case in ("nt_xent", "info_nce queue", "info_nce in batch"):
            out.append(_loss(kind, case, temperature=-0.2, **full))
    return out


def _of_inputs(draw: random.Random) -> list[Case]:
    """Strides, rows that break a kernel's assumptions, rows with NaN and Inf, ties."""
    out = []
    for kind in PLAIN:
        for layout, case in itertools.product(LAYOUTS[1:], ("nt_xent", "info_nce shared", "info_nce own")):
            out.append(_loss(kind, case, count=17, negatives=33, layout=layout))
        for values, case in itertools.product(VALUES[1:], ("nt_xent", "info_nce own")):
            out.append(_loss(kind, case, dim=draw.choice((40, 300)), negatives=33, values=values))
        for bad, case in itertools.product((float("nan"), float("inf"), -float("inf")), ("nt_xent", "info_nce shared")):
            out.append(_loss(kind, case, check=losses.bad_rows, bad=bad, dim=draw.choice((40, 300))))
        for case, dim in itertools.product(("nt_xent", "info_nce in batch", "info_nce shared"), (40, 128)):
            out.append(_loss(kind, case, check=losses.equal_rows_tie, dim=dim))
        for dim, vary in ((16, False), (40, True), (128, True)):
            machine = Machine(vary_winning_lane=vary)
            out.append(_loss(kind, "info_nce own", machine, check=losses.equal_rows_tie, dim=dim))
    return out


def everything() -> list[Case]:
    """Several hundred, the same each time."""
    parts = (_of_losses, _of_similarities, _of_updates, _of_schedules, _of_inputs)
    return [case for i, part in enumerate(parts) for case in part(random.Random(i))]
