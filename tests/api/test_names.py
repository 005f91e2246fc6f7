"""One name per operator in every layer, one signature per loss in its function, its reference and its class."""

import inspect
import traceback
from pathlib import Path

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import ssl_fast
from ssl_fast import NegativeQueue, functional, reference
from ssl_fast.operators import backends, calls, loading
from ssl_fast.tools import doctor
from tests.helpers.backends import only_compiled
from tests.helpers.loss_cases import ALL_CASES, CLASSES, arguments_of, loss_of, operator_of

TESTS = Path(__file__).parents[1]
OURS = Path(ssl_fast.__file__).parent
# Functions without a class of their own name: the primitive, and what InstanceDiscriminationLoss chooses.
OTHERS = {"similarity_lse", "instance_nce", "nce_normalizer"}
# What the class has besides, in its options or in what forward takes.
EXTRA = {"instance_discrimination": {"negatives": None}}
# The Python function that calls each operator.
CALLERS = {
    "nt_xent": functional.nt_xent,
    "info_nce": functional.info_nce,
    "similarity_lse": calls.similarity_lse,
    "pair_similarity": calls.pair_similarity,
    "class_similarity": calls.class_similarity,
    "similarity_softplus": calls.similarity_softplus,
    "ema_update_": ssl_fast.ema_update_,
    "enqueue_": NegativeQueue.enqueue_,
}
PRODUCTS = {"nt_xent", "info_nce", "similarity_lse", "similarity_softplus"}
# What the operator's files are called in csrc/ and kernels/, and its tests where they have another name.
FILES = {name: name for name in CALLERS} | {"ema_update_": "ema", "enqueue_": "enqueue"}
TEST_FILES = dict.fromkeys(
    ("similarity_lse", "pair_similarity", "class_similarity", "similarity_softplus"), "similarity"
)


def parameters(function) -> dict[str, object]:
    """Names, in order, and defaults; without self."""
    found = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.name != "self"}


def test_every_list_has_the_same_operators():
    assert set(backends.IMPLEMENTATIONS) == set(CALLERS) == set(FILES) == set(doctor.CHECKS)
    assert set(CLASSES) | OTHERS == set(functional.__all__) <= set(reference.__all__)
    assert {operator_of(case) for case in ALL_CASES} == set(CLASSES)


def test_all_losses_run_on_the_same_backends():
    # functional asks for one operator and may use several; loss_cases.py has one list of backends.
    losses = {
        names for operator, names in backends.IMPLEMENTATIONS.items() if operator not in ("ema_update_", "enqueue_")
    }
    assert len(losses) == 1


def test_every_implementation_is_a_backend():
    for operator, names in backends.IMPLEMENTATIONS.items():
        assert set(names) <= set(backends.BACKENDS) - {"reference"}, operator


@pytest.mark.parametrize("operator", CALLERS)
def test_every_operator_has_its_files(operator):
    name = FILES[operator]
    assert len([*TESTS.glob(f"*/test_{TEST_FILES.get(operator, name)}.py")]) == 1
    folders = {"cpu": ("csrc/cpu", ".cpp"), "triton": ("kernels", ".py"), "cuda": ("csrc/cuda", ".cu")}
    for backend in backends.IMPLEMENTATIONS[operator]:
        folder, suffix = folders[backend]
        assert (TESTS.parent / folder / f"{name}{suffix}").is_file(), f"{operator} on {backend}"


@pytest.mark.skipif(loading.extension is None, reason=f"the compiled extension is missing, {loading.why_missing}")
def test_every_compiled_operator_is_registered_under_its_name():
    import torch

    registered = {
        name.removeprefix("ssl_fast::") for name in torch._C._dispatch_get_all_op_names() if "ssl_fast" in name
    }
    compiled = {operator for operator, names in backends.IMPLEMENTATIONS.items() if "cpu" in names}
    compiled.add("positive_loss")  # for the CPU alone, where PyTorch's calls are what costs
    differentiable = compiled - {"ema_update_", "enqueue_"}
    # Operators of C++ kernels for CUDA leave Triton's another name.
    triton_apart = {f"triton_{operator}" for operator, names in backends.IMPLEMENTATIONS.items() if "cuda" in names}
    assert registered == compiled | {f"{operator}_backward" for operator in differentiable} | triton_apart


@pytest.mark.parametrize("operator", functional.__all__)
def test_function_and_reference_have_one_signature(operator):
    function = getattr(functional, operator)
    assert function.__name__ == operator
    # The reference is of one process: `distributed` takes a rank's part of it.
    own = {name: default for name, default in parameters(function).items() if name != "group"}
    assert list(own.items()) == list(parameters(getattr(reference, operator)).items())


COMMON = ["reduction", "normalize", "return_stats", "group"]


@pytest.mark.parametrize("operator", sorted(set(functional.__all__) - {"nce_normalizer", "similarity_lse"}))
def test_options_are_keywords_in_one_order(operator):
    kinds = inspect.signature(getattr(functional, operator)).parameters
    keywords = [name for name, parameter in kinds.items() if parameter.kind is parameter.KEYWORD_ONLY]
    common = [name for name in (*COMMON[:2], "weights", *COMMON[2:]) if name in kinds]
    assert [name for name in keywords if name in common] == common
    positional = [name for name in kinds if name not in keywords]
    assert positional[-1] == "temperature"
    assert keywords[keywords.index("reduction") :][: len(common)] == common


@pytest.mark.parametrize("operator", CLASSES)
def test_class_takes_the_options_and_forward_the_tensors(operator):
    options, tensors = parameters(CLASSES[operator].__init__), parameters(CLASSES[operator].forward)
    assert next(iter(options)) == "temperature"
    common = [name for name in COMMON if name in options]
    assert list(options)[1 : 1 + len(common)] == common
    assert {**tensors, **options} == parameters(getattr(functional, operator)) | EXTRA.get(operator, {})


class _Chains(TorchDispatchMode):
    """For each operator that makes products, the functions of ours that its first call passes, the innermost first."""

    def __init__(self):
        super().__init__()
        self.found: dict[str, list[str]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function.overloadpacket).removeprefix("ssl_fast.")
        if name in PRODUCTS and name not in self.found:
            passed = [frame.f_code for frame, _ in traceback.walk_stack(None) if frame.f_code.co_name[0] != "<"]
            self.found[name] = [code.co_name for code in passed if OURS in Path(code.co_filename).parents]
        return function(*arguments, **(options or {}))


@only_compiled
@pytest.mark.parametrize("case", ALL_CASES)
def test_an_operator_is_three_calls_away(case):
    with _Chains() as chains:
        loss_of(case, "cpu", arguments_of(case))
    assert chains.found
    # One more with ids: of info_nce's options the operator of its name has all but that.
    most = 4 if "by ids" in case else 3
    assert all(len(chain) <= most for chain in chains.found.values()), chains.found


def test_public_names():
    assert set(ssl_fast.__all__) >= {"NTXentLoss", "InfoNCELoss", "NegativeQueue", "ema_update_", "backend"}
    for name in ssl_fast.__all__:
        assert getattr(ssl_fast, name).__doc__, name
