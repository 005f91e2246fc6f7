"""One name per operator in every layer, one signature per loss in its function, its reference and its class."""

import inspect
from pathlib import Path

import pytest

import ssl_fast
from ssl_fast import NegativeQueue, backends, functional, native, reference

TESTS = Path(__file__).parent
LOSSES = {"nt_xent": ssl_fast.NTXentLoss, "info_nce": ssl_fast.InfoNCELoss}
# The public function of each operator.
PUBLIC = {
    "nt_xent": functional.nt_xent,
    "info_nce": functional.info_nce,
    "ema_update_": ssl_fast.ema_update_,
    "enqueue_": NegativeQueue.enqueue_,
}
# What the operator's files are called, in tests/, csrc/ and kernels/.
FILES = {"nt_xent": "nt_xent", "info_nce": "info_nce", "ema_update_": "ema", "enqueue_": "enqueue"}


def parameters(function) -> dict[str, object]:
    """Names, in order, and defaults; without self."""
    found = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.name != "self"}


def public_names(module) -> set[str]:
    """The functions that a module defines for others."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")}


def test_every_list_has_the_same_operators():
    assert set(backends.IMPLEMENTATIONS) == set(PUBLIC) == set(FILES)
    assert set(LOSSES) == public_names(functional)
    assert set(PUBLIC) <= public_names(reference)


def test_every_implementation_is_a_backend():
    for operator, names in backends.IMPLEMENTATIONS.items():
        assert set(names) <= set(backends.BACKENDS) - {"reference"}, operator


@pytest.mark.parametrize("operator", PUBLIC)
def test_every_operator_has_its_files(operator):
    name = FILES[operator]
    assert (TESTS / f"test_{name}.py").is_file()
    folders = {"cpu": ("csrc/cpu", ".cpp"), "triton": ("kernels", ".py"), "cuda": ("csrc/cuda", ".cu")}
    for backend in backends.IMPLEMENTATIONS[operator]:
        folder, suffix = folders[backend]
        assert (TESTS.parent / folder / f"{name}{suffix}").is_file(), f"{operator} on {backend}"


@pytest.mark.skipif(native.extension is None, reason=f"the compiled extension is missing, {native.why_missing}")
def test_every_compiled_operator_is_registered_under_its_name():
    import torch

    registered = {
        name.removeprefix("ssl_fast::") for name in torch._C._dispatch_get_all_op_names() if "ssl_fast" in name
    }
    compiled = {operator for operator, names in backends.IMPLEMENTATIONS.items() if "cpu" in names}
    assert registered == compiled | {f"{operator}_backward" for operator in LOSSES}


@pytest.mark.parametrize("operator", LOSSES)
def test_function_and_reference_have_one_signature(operator):
    function = getattr(functional, operator)
    assert function.__name__ == operator
    assert list(parameters(function).items()) == list(parameters(getattr(reference, operator)).items())


@pytest.mark.parametrize("operator", LOSSES)
def test_class_takes_the_options_and_forward_the_tensors(operator):
    options, tensors = parameters(LOSSES[operator].__init__), parameters(LOSSES[operator].forward)
    assert list(options) == ["temperature", "reduction"]
    expected = parameters(getattr(functional, operator))
    # Statistics are the function's: a module returns a loss.
    assert expected.pop("return_stats") is False
    assert {**tensors, **options} == expected


def test_public_names():
    assert set(ssl_fast.__all__) >= {"NTXentLoss", "InfoNCELoss", "NegativeQueue", "ema_update_", "backend"}
    for name in ssl_fast.__all__:
        assert getattr(ssl_fast, name).__doc__, name
