"""Every public call with arguments drawn at random, good ones and bad: refused by name, or right.

Each case follows from the seed and its number; cases run in processes of their own, for one may crash.

    PYTHONPATH=. python tests/api/test_fuzz.py SEED NUMBER          # replay one
    PYTHONPATH=. python tests/api/test_fuzz.py SEED FIRST COUNT     # run some
"""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_errors import bits, names_an_argument, state_of
from torch import Tensor, nn

import ssl_fast
from ssl_fast import LearnableTemperature, MemoryBank, NegativeQueue, checks, functional, reference
from ssl_fast.formulas.scalars import TEMPERATURES
from tests.helpers.bad_values import KINDS, bad_values
from tests.helpers.fuzz import CALLS, LOSSES, Inputs, parameters
from tests.helpers.strategies import LAYOUTS, lay_out

SEED = 0
# warmup runs every loss.
WEIGHTS = [0.05 if call == "warmup" else 2.0 if call in LOSSES else 1.0 for call in CALLS]
# Values of each of an argument's rows, and how often.
VALUES = {"ordinary": 20, "zero": 2, "large": 1, "tiny": 1, "equal": 1, "nan": 1, "inf": 1, "-inf": 1}
FINITE = ("ordinary", "zero", "equal")
# Options that fit, beside the defaults.
_TEMPERATURES = [
    lambda: 0.1, lambda: 0.02, lambda: -0.3, lambda: 30, lambda: np.float32(0.5), lambda: 1e-8, lambda: 1e8,
    lambda: torch.tensor(0.2), lambda: torch.tensor(0.3, dtype=torch.float64, requires_grad=True),
    lambda: nn.Parameter(torch.tensor(-0.5)), LearnableTemperature, lambda: torch.tensor(0.25, dtype=torch.bfloat16),
    lambda: torch.tensor(math.nan), lambda: torch.tensor(0.0), lambda: torch.tensor(1e-9),
    lambda: torch.tensor(math.inf),
]  # fmt: skip
OPTIONS = {
    "temperature": _TEMPERATURES,
    "exclude": [lambda: None],
    "only": [lambda: None],
    "logit_scale": [lambda: None, lambda: 14, lambda: torch.tensor(20.0, requires_grad=True)],
    "scale": [lambda: 5.0, lambda: -2, lambda: torch.tensor(9.0, requires_grad=True), lambda: torch.tensor(math.nan)],
    "bias": [lambda: 0, lambda: 3.5, lambda: torch.tensor(-10.0, requires_grad=True), lambda: torch.tensor(math.nan)],
    "normalizer": [lambda: 2, lambda: torch.tensor(50.0), lambda: torch.tensor(7.0, dtype=torch.float64)],
    "reduction": [lambda name=name: name for name in checks.REDUCTIONS],
    "form": [lambda: "out", lambda: "in"],
    "sigma": [lambda: None, lambda: 0.3, lambda: 2],
    "beta": [lambda: 0.0, lambda: 0.5, lambda: 3],
    "tau_plus": [lambda: 0, lambda: 0.1],
    "momentum": [lambda: 0, lambda: 1, lambda: 0.5, lambda: torch.tensor(0.99), lambda: np.float64(0.9)],
    "seed": [lambda: None, lambda: 7, lambda: -(2**63)],
    **{
        name: [lambda: True, lambda: False]
        for name in ("return_stats", "normalize", "columns", "count_without_positive")
    },
}


class Case(NamedTuple):
    call: str
    function: object
    arguments: dict
    labels: dict[str, str]  # of bad arguments
    values: set[str]  # of the rows


def draw(seed: int, number: int) -> Case:
    """The same case for the same seed and number."""
    random_ = random.Random(f"{seed} {number}")
    torch.manual_seed(number)
    values = set()

    def finish(x: Tensor) -> Tensor:
        kind = random_.choices(list(VALUES), VALUES.values())[0]
        values.add(kind)
        x = lay_out(_with_values(x, kind, random_), random_.choice(LAYOUTS)).detach()
        return x.requires_grad_(random_.random() < 0.4)

    call = random_.choices(list(CALLS), WEIGHTS)[0]
    dtype = random_.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    dim = random_.choice([1, 2, 3, 5, 8, 16, 17, 33])
    x = Inputs(number, random_.randint(1, 9), random_.randint(3, 12), dim, dtype, finish)
    function, arguments = CALLS[call](x)
    _other_rows(arguments, values, random_)
    labels, names = {}, parameters(function)
    share = random_.choice([0, 0, 0.1, 0.3])
    for name, parameter in names.items():
        if random_.random() < share:
            labels[name], arguments[name] = _bad(call, name, arguments.get(name, parameter.default), random_)
        elif name in OPTIONS and random_.random() < 0.5:
            arguments[name] = random_.choice(OPTIONS[name])()
    return Case(call, function, arguments, labels, values)


def _other_rows(arguments: dict, values: set, random_) -> None:
    """A queue's and a bank's: sometimes with a NaN, and a bank as the module."""
    if isinstance(arguments.get("bank"), Tensor) and random_.random() < 0.3:
        module = MemoryBank(*arguments["bank"].shape, dtype=arguments["bank"].dtype, seed=0)
        arguments["bank"] = module
    for x in arguments.values():
        if isinstance(x, (NegativeQueue, MemoryBank)) and random_.random() < 0.1:
            next(x.buffers())[0, 0] = math.nan
            values.add("nan")


def _with_values(x: Tensor, kind: str, random_) -> Tensor:
    row = random_.randrange(x.shape[0])
    if kind in ("large", "tiny"):
        # float16 holds neither 1e30 nor 1e-30.
        size = {torch.float16: 1e2}.get(x.dtype, 1e30)
        return x * (size if kind == "large" else 1 / size)
    if kind == "equal":
        return x[:1].expand(x.shape).clone()
    if kind != "ordinary":
        x[row] = 0
    if kind in ("nan", "inf", "-inf"):
        x[(row, *(random_.randrange(size) for size in x.shape[1:]))] = float(kind)
    return x


def _bad(call: str, name: str, good, random_):
    """(label, value): of the argument's own kind, of another's, or a tensor of any shape and dtype."""
    if random_.random() < 0.15:
        shape = [random_.choice([0, 1, 2, 3, 6]) for _ in range(random_.randint(0, 4))]
        dtype = random_.choice([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool])
        return "any tensor", torch.randn(shape).to(dtype)
    if random_.random() < 0.15:
        kinds = KINDS[random_.choice(list(KINDS))]
        kinds = {label: bad for label, bad in kinds.items() if bad.constant}
    else:
        kinds = bad_values(call, name, good)
    label = random_.choice([*kinds, "none"])
    try:
        return label, None if label == "none" else kinds[label].value(good)
    except (RuntimeError, IndexError):  # PyTorch makes no such tensor of this one
        return "none", None


def outcome_of(seed: int, number: int) -> tuple[str, str]:
    """("taken" or "refused"; what is wrong, or nothing)."""
    case = draw(seed, number)
    torch.manual_seed(number)
    before = state_of(case.function, case.arguments)
    try:
        result = case.function(**case.arguments)
    except Exception as error:
        if type(error) not in (ValueError, TypeError):
            return "refused", f"{type(error).__name__}: {error}"
        if not names_an_argument(str(error), parameters(case.function)):
            return "refused", f"names no argument: {error}"
        changed = state_of(case.function, case.arguments) != before
        return "refused", f"something has changed before: {error}" if changed else ""
    if case.call == "LearnableTemperature.forward" or not is_loss(case):
        return "taken", disagreement(seed, number, case, result)
    if bits(case.arguments) != before[0]:
        return "taken", "an argument has changed"
    if tensors_of(result)[0].is_meta:
        return "taken", ""
    return "taken", (
        wrong_loss(case, result) or disagreement(seed, number, case, result) or wrong_gradient(case, result)
    )


def is_loss(case: Case) -> bool:
    return case.call.partition(" ")[0] in LOSSES or ".forward" in case.call


def embeddings_of(case: Case) -> dict[str, Tensor]:
    found = {}
    for name, x in case.arguments.items():
        x = {NegativeQueue: lambda x: x.queue, MemoryBank: lambda x: x.bank}.get(type(x), lambda x: x)(x)
        if isinstance(x, Tensor) and x.dim() > 1 and x.dtype in checks.FLOATS:
            found[name] = x
    return found


def temperature_of(case: Case) -> float:
    found = case.arguments.get("temperature", getattr(case.function, "temperature", 0.1))
    found = float(found() if isinstance(found, nn.Module) else found)
    scale = case.arguments.get("logit_scale", case.arguments.get("scale"))
    return found if scale is None else 1 / float(scale)


def in_range(case: Case) -> bool:
    return TEMPERATURES[0] <= abs(temperature_of(case)) <= TEMPERATURES[1]


def finite_rows(case: Case) -> bool:
    return all(x.isfinite().all() for x in embeddings_of(case).values())


def tensors_of(result) -> list[Tensor]:
    return [each for x in result for each in tensors_of(x)] if isinstance(result, tuple) else [result]


def wrong_loss(case: Case, result) -> str:
    """Shape, dtype, and whether a NaN or Inf that takes part shows."""
    function = case.call.partition(" ")[0]
    rows = embeddings_of(case)
    first = next(iter(rows.values()))
    found = tensors_of(result)
    count = math.prod(first.shape[:-1])
    if function in ("nt_xent", "dcl", "hard_negative_nt_xent", "clip"):
        count *= 2
    per_row = function == "similarity_lse" or case.arguments.get("reduction") == "none"
    expected = [(count,) if per_row else ()]
    if function == "similarity_lse":
        expected += [(len(rows["b"]),)] if case.arguments.get("columns") else []
    elif case.arguments.get("return_stats"):
        expected += [()] * 4
    if [tuple(x.shape) for x in found] != expected:
        return f"shapes {[tuple(x.shape) for x in found]}, expected {expected}"
    dtypes = {x.dtype for x in rows.values()}
    wide = torch.float64 if dtypes == {torch.float64} else torch.float32
    if len(dtypes) == 1 and {x.dtype for x in found} != {wide}:
        return f"dtypes {[x.dtype for x in found]}, expected {wide}"
    chosen = (
        any(case.arguments.get(name) is not None for name in ("exclude", "only", "noise")) or "sampled" in case.call
    )
    if not finite_rows(case) and not chosen and found[0].isfinite().all():
        return "a finite loss of rows that hold NaN or Inf"
    return "a finite loss at no temperature" if not in_range(case) and found[0].isfinite().any() else ""


def ordinary(case: Case) -> bool:
    """Whether rounding cannot be large: no extreme temperature, and no extreme rows that are taken as they are."""
    if case.arguments.get("normalize") is False and not case.values <= set(FINITE):
        return False
    return not is_loss(case) or 0.02 <= abs(temperature_of(case)) <= 100


def disagreement(seed: int, number: int, case: Case, result) -> str:
    """With the reference backend, of results and of what is written in place."""
    again = draw(seed, number)
    torch.manual_seed(number)
    with ssl_fast.backend("reference"):
        expected = again.function(**again.arguments)
    pairs = [(result, expected)] if isinstance(result, (Tensor, tuple)) else []
    pairs += zip(*(_written(each) for each in (case, again)), strict=True)
    # Random rounding goes by places in memory, the reference's by those in the tensor.
    tolerance = 1e-3 if case.arguments.get("seed") is None else 1e-2
    if not ordinary(case):
        return ""
    for got, truth in pairs:
        for place, (x, y) in enumerate(zip(tensors_of(got), tensors_of(truth), strict=True)):
            # Ranks: near ties are rounding's. Statistics of NaN rows are not compared either.
            if case.arguments.get("return_stats") and (place in (1, 2) or (place and not finite_rows(case))):
                continue
            x, y = x.detach().double(), y.detach().double()
            finite = x.isfinite()
            if not torch.equal(finite, y.isfinite()) or not torch.allclose(x[finite], y[finite], tolerance, tolerance):
                return f"not the reference's: {x.tolist()}, {y.tolist()}"
    return ""


def _written(case: Case) -> list[Tensor]:
    """What a call may have written: its module's state, and a target's."""
    owners = getattr(case.function, "__self__", case.function), case.arguments.get("target")
    states = [list(owner.state_dict().values()) if isinstance(owner, nn.Module) else owner for owner in owners]
    return [x for state in states if isinstance(state, list) for x in state]


def wrong_gradient(case: Case, result) -> str:
    loss = tensors_of(result)[0]
    leaves = {name: x for name, x in case.arguments.items() if isinstance(x, Tensor) and x.requires_grad}
    if not loss.requires_grad or not loss.isfinite().all() or not ordinary(case) or not finite_rows(case):
        return ""
    loss.sum().backward()
    bad = [name for name, x in leaves.items() if x.grad is not None and not x.grad.isfinite().all()]
    return f"a finite loss with gradients that are not: {', '.join(bad)}" if bad else ""


def described(seed: int, number: int) -> str:
    case = draw(seed, number)
    marks = {name: f"<{label}> " for name, label in case.labels.items()}
    arguments = {name: marks.get(name, "") + _short(x) for name, x in case.arguments.items()}
    return f"{case.call}({', '.join(f'{name}={x}' for name, x in arguments.items())}), rows: {sorted(case.values)}"


def _short(x) -> str:
    if isinstance(x, Tensor) and not x.is_nested and x.dim():
        return f"Tensor {tuple(x.shape)} {x.dtype} {x.layout}{' with gradient' * x.requires_grad}"
    return " ".join(repr(x).split())[:80]


def run_cases(seed: int, first: int, count: int) -> None:
    """Prints each number, before a crash could come, the problem if there is one, and how many were what."""
    torch.set_num_threads(1)
    outcomes = Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        try:
            outcome, problem = outcome_of(seed, number)
        except Exception as error:
            outcome, problem = "taken", f"in the test itself, or the reference: {type(error).__name__}: {error}"
        outcomes[outcome] += 1
        if problem:
            print("!", number, described(seed, number), "->", " ".join(problem.split())[:600], flush=True)
    print("#", json.dumps(outcomes))


def assert_no_problem(first: int, count: int) -> None:
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", __file__, str(SEED), str(first), str(count)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}  # bench/ and tests/helpers/ are found there
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    lines = done.stdout.splitlines()
    problems = [line for line in lines if line.startswith("!")]
    if done.returncode:
        last = lines[-1] if lines else first
        problems.append(f"! {last} ended the process with {done.returncode}: {done.stderr[-2000:]}")
    replay = f"PYTHONPATH=. python tests/api/test_fuzz.py {SEED}"
    problems = [f"{each}\n  replay: {replay} {each.split()[1]}" for each in problems]
    assert not problems, "\n".join(problems)
    outcomes = json.loads(lines[-1].removeprefix("#"))
    assert sum(outcomes.values()) == count
    assert outcomes["taken"] > 0.4 * count  # else nothing is tested
    assert outcomes["refused"] > 0.1 * count


def test_some_cases():
    assert_no_problem(0, 300)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("chunk", range(10))
def test_many_cases(chunk):
    assert_no_problem(10_000 * chunk, 10_000)


# What this found, and is not mended yet


def _instance_nce(temperature):
    index = torch.arange(4)
    return functional.instance_nce(torch.ones(4, 3), index, index[:, None], torch.ones(5, 3), 5.0, temperature)


@pytest.mark.parametrize("temperature", [1e-9, math.inf])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(_instance_nce, id="nce"),
        pytest.param(
            lambda temperature: functional.siglip(torch.ones(1, 3), torch.ones(1, 3), temperature),
            id="siglip of one pair",
        ),
        pytest.param(
            lambda _: functional.supcon(torch.tensor([[math.nan, 1.0]]), torch.tensor([0])),
            id="supcon of one row",
        ),
        pytest.param(
            lambda temperature: reference.supcon(torch.ones(1, 3), torch.tensor([0]), temperature),
            id="supcon's reference of one row",
        ),
    ],
)
def test_never_a_finite_loss(loss, temperature):
    assert loss(torch.tensor(temperature)).isnan()


if __name__ == "__main__":
    seed_, first_, *count_ = map(int, sys.argv[1:])
    run_cases(seed_, first_, *(count_ or [1]))
