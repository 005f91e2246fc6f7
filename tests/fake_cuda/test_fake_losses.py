"""No copy between host and device and no wait in any loss, forward or backward, with any option.

Every call also holds the operators in it to their fake kernels, and every launch to one device: the tensors are on
cuda:1 while cuda:0 is the current one.
"""

import pytest
import torch
from fake_cases import CASES, TEMPERATURES, arguments_of, assert_clean, function_of, is_leaf, leaf, step
from fake_device import ROOT, fake_cuda

import ssl_fast

HERE = torch.device("cuda:1")
# One case of each function meets every temperature; the others meet those that take different ways.
FUNCTIONS = list({CASES[case].function: case for case in reversed(CASES)}.values())
DIFFERENT = ("number", "leaf")
PAIRS = [(case, name) for case in CASES for name in TEMPERATURES if case in FUNCTIONS or name in DIFFERENT]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_options(case, arguments, **options):
    return arguments | options if CASES[case].reduces else arguments


@pytest.mark.parametrize(("case", "temperature"), PAIRS)
def test_neither_copies_nor_waits(case, temperature, gpu):
    """With statistics, which take more steps. The reduction and the dtype change from test to test."""
    number = PAIRS.index((case, temperature))
    dtype = (torch.float32, torch.bfloat16)[number % 2]
    options = {"reduction": ("mean", "none", "sum")[number % 3], "return_stats": True}
    value = TEMPERATURES[temperature]()
    forward, whole, result = step(gpu, case, with_options(case, arguments_of(case, dtype=dtype), **options), value)
    assert_clean(forward)
    assert_clean(whole, returns=is_leaf(value) and value.device.type == "cpu")
    loss, stats = result if CASES[case].reduces else (result, ())
    assert (loss.device, loss.dtype) == (HERE, wide(dtype))
    for x in stats:
        assert (x.shape, x.dtype, x.device, x.requires_grad) == ((), wide(dtype), HERE, False)
    if is_leaf(value):
        assert (value.grad.device, value.grad.dtype) == (value.device, value.dtype)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_without_statistics_in_other_dtypes_and_widths(case, gpu):
    """Of the losses; test_fake_operators.py has them all of each operator."""
    for dtype, dim in (torch.float64, 3), (torch.float16, 300):
        arguments = arguments_of(case, dim=dim, dtype=dtype)
        _, whole, loss = step(gpu, case, arguments, 0.1)
        assert_clean(whole)
        assert loss.dtype == wide(dtype)
        for x in filter(is_leaf, arguments.values()):
            assert (x.grad.shape, x.grad.dtype, x.grad.device) == (x.shape, x.dtype, x.device)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_where_some_gradients_are_wanted(case, gpu):
    """Of the temperature alone; of the first tensor alone."""
    for first, temperature in ((False, leaf()), (True, 0.1)):
        arguments = arguments_of(case)
        for place, x in enumerate(filter(is_leaf, list(arguments.values()))):
            x.requires_grad_(first and place == 0)
        _, whole, _ = step(gpu, case, arguments, temperature)
        assert_clean(whole)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_neither_copies_nor_waits(case, gpu):
    arguments = with_options(case, arguments_of(case), return_stats=True)
    with ssl_fast.backend("reference"):
        _, whole, _ = step(gpu, case, arguments, 0.1)
        assert_clean(whole)
        assert not whole.launches
        function_of(case)(**arguments, temperature=leaf())
        assert_clean(gpu)


def test_launches_are_counted(gpu):
    """build/fake_cuda/launches.md: what a step costs the host, by loss. Copies and waits are 0, or the test is red."""
    lines = [
        "| loss | launches, forward | with backward | of PyTorch's, forward | with backward | copies | waits |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        forward, whole, _ = step(gpu, case, arguments_of(case), 0.1)
        assert_clean(whole)
        counts = [len(x) for of in ("launches", "computed") for x in (getattr(forward, of), getattr(whole, of))]
        lines.append(f"| {case} | {' | '.join(map(str, [*counts, len(whole.copies), len(whole.waits)]))} |")
    folder = ROOT / "build" / "fake_cuda"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "launches.md").write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("_possible")
@pytest.mark.parametrize("case", FUNCTIONS)
def test_on_the_current_device(case):
    with fake_cuda(current=1) as gpu:
        _, whole, _ = step(gpu, case, arguments_of(case), 0.1)
        assert_clean(whole)
