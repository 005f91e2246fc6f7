"""ssl_fast.compat.open_clip beside the installed library."""

import copy
import inspect
import pickle
import sys
import warnings

import open_clip
import pytest
import torch
import torch.distributed as dist
from agreement import RELATIVE, assert_agree, assert_same_error, close, with_gradients
from hypothesis import given
from hypothesis import strategies as st
from open_clip import loss as theirs
from torch.nn.functional import normalize

import ssl_fast
from ssl_fast.compat import open_clip as ours
from ssl_fast.compat import own_path
from tests.helpers.examples import number, run_example
from tests.helpers.processes import run

NAMES = ["ClipLoss", "SigLipLoss"]
every_name = pytest.mark.parametrize("name", NAMES)


def both(name, **options):
    return getattr(ours, name)(**options), getattr(theirs, name)(**options)


def features(count, dim, dtype=torch.float32, seed=0):
    """(images, texts) of norms near 1 but not 1: nothing is normalised."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return ((0.7 + torch.rand(2, count, 1, generator=generator, dtype=torch.float64)) * normalize(x, dim=2)).to(dtype)


def scalars(scale, bias, dtype=torch.float32):
    return torch.tensor(scale, dtype=dtype), torch.tensor(bias, dtype=dtype)


def in_float64(call):
    return lambda *tensors: call(*(x.double() for x in tensors))


# Values and gradients


@every_name
@given(
    count=st.integers(1, 12),
    dim=st.integers(1, 8),
    dtype=st.sampled_from(list(RELATIVE)),
    scale=st.floats(0.5, 30),
    bias=st.floats(-10, 2),
    seed=st.integers(0, 1000),
)
def test_all_four_gradients_agree_with_the_library_in_float64(name, count, dim, dtype, scale, bias, seed):
    loss, library = both(name)
    tensors = *features(count, dim, dtype, seed), *scalars(scale, bias, dtype)
    relative = RELATIVE[dtype] if dtype != torch.float32 else 2e-5  # logits of 30 or more, rounded, in float32
    value, gradients = with_gradients(loss, tensors)
    expected, truths = with_gradients(in_float64(library), tensors)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(value, expected, relative)
    for got, truth, x in zip(gradients, truths, tensors, strict=True):
        assert got.dtype == x.dtype
        close(got, truth, relative)


@every_name
@given(count=st.integers(2, 8), scale=st.floats(0.5, 14), seed=st.integers(0, 1000))
def test_float32_beside_the_library_in_float32(name, count, scale, seed):
    loss, library = both(name)
    tensors = *features(count, 6, torch.float32, seed), *scalars(scale, -3.0)
    value, expected = loss(*tensors), library(*tensors)
    exact = library(*(x.double() for x in tensors))
    assert abs(value - expected) <= abs(expected - exact) + 1e-5 * exact


@every_name
@pytest.mark.parametrize("bias", [None, -5.0])
@pytest.mark.parametrize("scale", [14.0, 3])
def test_numbers_for_scale_and_bias(name, scale, bias):
    loss, library = both(name)
    assert_agree(
        lambda a, b: loss(a, b, scale, bias), lambda a, b: library(a, b, scale, bias), *features(5, 4, torch.float64)
    )


@every_name
def test_a_scale_of_shape_1(name):
    loss, library = both(name)
    tensors = *features(5, 4, torch.float64), torch.tensor([14.0]).double(), torch.tensor([-2.0]).double()
    assert_agree(loss, library, *tensors)


def test_the_bias_of_clip_gets_a_gradient_of_0():
    gradients = []
    for loss in both("ClipLoss"):
        bias = torch.tensor(-10.0, requires_grad=True)
        loss(*features(6, 4), torch.tensor(9.0), bias).backward()
        gradients.append(bias.grad)
    assert gradients[0] == 0
    assert abs(gradients[1]) < 1e-6  # rounding


@every_name
def test_output_dict(name):
    loss, library = both(name)
    tensors = *features(5, 4), *scalars(10.0, -3.0)
    got, expected = (x(*tensors, output_dict=True) for x in (loss, library))
    assert got.keys() == expected.keys() == {"contrastive_loss"}
    close(got["contrastive_loss"], expected["contrastive_loss"], 1e-5)


@every_name
def test_strided_and_zero_rows(name):
    loss, library = both(name)
    stored = features(12, 6, torch.float64)
    images, texts = stored[0].T.contiguous().T[::2], stored[1, ::2]
    images[2] = 0
    assert not images.is_contiguous()
    assert_agree(loss, library, images, texts, *scalars(20.0, -4.0, torch.float64))


@every_name
def test_nan_in_gives_nan_out(name):
    images, texts = features(4, 3)
    texts[2, 0] = float("nan")
    assert both(name)[0](images, texts, *scalars(10.0, -3.0)).isnan()


@every_name
def test_half_inputs_give_float32_where_the_librarys_loss_is_rounded(name):
    loss, library = both(name)
    tensors = *features(64, 16, torch.bfloat16), *scalars(20.0, -3.0, torch.bfloat16)
    value, rounded, exact = loss(*tensors), library(*tensors), library(*(x.double() for x in tensors))
    assert (value.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert abs(value - exact) < 1e-4 * exact
    assert abs(rounded - exact) > 5e-4 * exact


@every_name
def test_under_autocast_ours_is_nearer_and_towers_may_end_in_different_types(name):
    loss, library = both(name)
    images, texts = features(32, 16)
    tensors = images, texts, *scalars(20.0, -3.0)
    exact = library(*(x.double() for x in tensors))
    with torch.autocast("cpu", torch.bfloat16):
        assert abs(loss(*tensors) - exact) < 1e-5 * exact
        assert abs(library(*tensors) - exact) > 1e-4 * exact
        mixed = images, texts.bfloat16(), *tensors[2:]
        close(loss(*mixed), library(*mixed), 2e-2)


# Signatures, attributes, errors, subclasses


@every_name
def test_signatures_classes_and_attributes(name):
    mine, library = getattr(ours, name), getattr(theirs, name)
    for method in ("__init__", "forward"):
        expected = inspect.signature(getattr(library, method)).parameters
        got = inspect.signature(getattr(mine, method)).parameters
        assert [(x.name, x.default) for x in got.values()] == [(x.name, x.default) for x in expected.values()]
    assert issubclass(mine, library)
    loss, library = both(name, cache_labels=True, rank=1)
    assert vars(loss) == vars(library)
    assert not loss.state_dict()
    assert vars(ours.SigLipLoss(dist_impl="shift"))["dist_impl"] == "shift"


@every_name
def test_the_methods_that_subclasses_use_are_there(name):
    loss, library = both(name)
    images, texts = features(4, 3)
    scale, bias = scalars(10.0, -2.0)
    logits, expected = (torch.stack(tuple(x.get_logits(images, texts, scale, bias))) for x in (loss, library))
    assert torch.equal(logits, expected)
    size = (torch.device("cpu"), 4) if name == "ClipLoss" else (torch.device("cpu"), torch.float32, 4)
    assert torch.equal(loss.get_ground_truth(*size), library.get_ground_truth(*size))


@every_name
def test_a_subclass_that_overrides_the_logits_is_heard(name):
    own_path.say_own_path.cache_clear()

    def get_logits(self, images, texts, scale, logit_bias=None):
        logits = 2 * scale * images @ texts.T
        return (logits, logits.T) if name == "ClipLoss" else logits

    mine, library = (type("Other", (getattr(x, name),), {"get_logits": get_logits})() for x in (ours, theirs))
    tensors = *features(5, 4, torch.float64), *scalars(7.0, -2.0, torch.float64)
    with pytest.warns(UserWarning, match="an override of get_logits"):
        assert_agree(lambda *x: mine(*x, tensors[3]), lambda *x: library(*x, tensors[3]), *tensors[:3])


def test_a_scale_of_several_elements_runs_the_librarys_code_and_says_so_once():
    own_path.say_own_path.cache_clear()
    loss, library = both("ClipLoss")
    tensors = *features(5, 4, torch.float64), torch.rand(5, 1, dtype=torch.float64)
    with pytest.warns(UserWarning, match="of several elements has no fused form"):
        assert_agree(loss, library, *tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(*tensors)


def test_errors():
    assert_same_error(lambda: ours.SigLipLoss(dist_impl="ring"), lambda: theirs.SigLipLoss(dist_impl="ring"))
    tensors = *features(4, 3), *scalars(10.0, -3.0)
    for name in NAMES:  # several processes, but no process group
        loss, library = both(name, world_size=2)
        assert_same_error(lambda loss=loss: loss(*tensors), lambda library=library: library(*tensors))
    loss, library = both("ClipLoss", world_size=2, use_horovod=True)
    assert_same_error(lambda: loss(*tensors), lambda: library(*tensors))


@every_name
def test_deepcopy_and_pickle(name):
    loss = getattr(ours, name)(rank=0, cache_labels=True)
    tensors = *features(4, 3), *scalars(10.0, -3.0)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(copied) is type(loss)
        assert copied.cache_labels
        assert torch.equal(copied(*tensors), loss(*tensors))


def test_patch_swaps_and_restores():
    before = open_clip.ClipLoss
    with ssl_fast.patch("open_clip"):
        for module in (open_clip, theirs, sys.modules["open_clip.factory"]):
            assert module.ClipLoss is ours.ClipLoss
        assert sys.modules["open_clip.factory"].SigLipLoss is ours.SigLipLoss
        # Classes made from theirs stay so, and work.
        coca = open_clip.CoCaLoss(1.0, 2.0)
        losses = coca(*features(4, 3), torch.randn(4, 5, 7), torch.randint(7, (4, 5)), torch.tensor(10.0))
        close(losses[0], 2 * ours.ClipLoss()(*features(4, 3), 10.0), 1e-5)
    assert open_clip.ClipLoss is theirs.ClipLoss is sys.modules["open_clip.factory"].ClipLoss is before


@pytest.mark.slow
@every_name
def test_torch_compile(name):
    loss, _ = both(name)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_agree(compiled, loss, *features(5, 6), *scalars(10.0, -3.0))


# Processes


def across(rank, world):
    """Value and gradients of ours and theirs, for each setting, in this rank; and the mean over the ranks of theirs."""
    found = {}
    tensors = *features(3, 4, torch.float64, seed=rank), *scalars(9.0, -3.0, torch.float64)
    settings = [("ClipLoss", {"local_loss": a, "gather_with_grad": b}) for a in (False, True) for b in (False, True)]
    settings += [("SigLipLoss", {"dist_impl": x}) for x in (None, "shift", "reduce", "gather")]
    for name, options in settings:
        results = []
        for loss in both(name, rank=rank, world_size=world, **options):
            value, gradients = with_gradients(loss, tensors)
            results.append([x.tolist() for x in (value, *gradients)])
        found.setdefault((name, *options.values()), results)
    # The exact gradient of the whole batch for the rank's images.
    images, texts = torch.cat([features(3, 4, torch.float64, seed=other) for other in range(world)], 1)
    exact = with_gradients(theirs.ClipLoss(), [images, texts, *tensors[2:]])[1][0][3 * rank : 3 * rank + 3]
    found["exact"] = exact.tolist()
    dist.barrier()
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:local_loss without gather_with_grad")
def test_every_way_across_two_processes():
    world = 2
    answers = run(world, across)
    for answer in answers:
        exact = torch.tensor(answer.pop("exact"))
        for results in answer.values():
            for got, truth in zip(*results, strict=True):
                close(torch.tensor(got), torch.tensor(truth), 1e-6)
        # After DistributedDataParallel's mean over the ranks, / world: PEERS.md's (a) to (d).
        of_images = {key: torch.tensor(x[0][1]) / world for key, x in answer.items() if key[0] == "ClipLoss"}
        close(of_images["ClipLoss", True, True], exact, 1e-6)
        close(of_images["ClipLoss", False, True], exact, 1e-6)
        close(of_images["ClipLoss", False, False], exact / world, 1e-6)
        assert (of_images["ClipLoss", True, False] - exact).abs().max() > 0.05 * exact.abs().max()


def test_the_gather_whose_gradient_is_wrong_is_warned_of():
    with pytest.warns(UserWarning, match="local_loss without gather_with_grad"):
        ours.ClipLoss(local_loss=True, world_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.ClipLoss(local_loss=True)
        ours.ClipLoss(local_loss=True, gather_with_grad=True, world_size=2)


@pytest.mark.slow
def test_the_example():
    printed = run_example("open_clip_digits", "--steps", "200")
    assert number("zero-shot accuracy after", printed) > number("zero-shot accuracy before", printed) + 0.3
