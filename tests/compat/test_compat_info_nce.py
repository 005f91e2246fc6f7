"""ssl_fast.compat.info_nce beside the installed info-nce-pytorch."""

import copy
import inspect
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import info_nce as theirs
import pytest
import torch
from agreement import RELATIVE, assert_agree, assert_same_error, close, with_gradients
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast.compat import info_nce as ours
from tests.helpers.examples import losses, number, run_example

ROOT = Path(__file__).parents[2]
MODES = {"in batch": "unpaired", "unpaired": "unpaired", "paired": "paired"}
seeds = st.integers(0, 2**31 - 1)


def arguments(mode, count, dim, negatives=5, dtype=torch.float32, seed=0):
    """query, positive_key and, by mode, negative_keys, and the option they need."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"in batch": [], "unpaired": [(negatives, dim)], "paired": [(count, negatives, dim)]}[mode]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in [(count, dim)] * 2 + shapes]
    return tensors, MODES[mode]


@given(
    st.sampled_from(list(MODES)),
    st.sampled_from(["mean", "sum", "none"]),
    st.integers(1, 12),
    st.integers(2, 8),
    st.integers(1, 8),
    st.floats(0.05, 2) | st.floats(-2, -0.1) | st.just(1),
    st.sampled_from([torch.float32, torch.float64]),
    seeds,
)
def test_values_and_gradients(mode, reduction, count, dim, negatives, temperature, dtype, seed):
    tensors, negative_mode = arguments(mode, count, dim, negatives, dtype, seed)
    options = {"temperature": temperature, "reduction": reduction, "negative_mode": negative_mode}
    assert_agree(partial(ours.info_nce, **options), partial(theirs.info_nce, **options), *tensors)
    assert_agree(ours.InfoNCE(**options), theirs.InfoNCE(**options), *tensors)


@pytest.mark.parametrize("mode", list(MODES))
def test_defaults(mode):
    tensors, negative_mode = arguments(mode, 6, 4)
    assert_agree(
        ours.InfoNCE(negative_mode=negative_mode), theirs.InfoNCE(negative_mode=negative_mode), *tensors
    )  # fmt: skip


@pytest.mark.parametrize("mode", list(MODES))
def test_one_dimension(mode):
    # In float32 theirs rounds the gradient, which is 0, to something else.
    tensors, negative_mode = arguments(mode, 5, 1, dtype=torch.float64)
    assert_agree(*(partial(x.info_nce, negative_mode=negative_mode) for x in (ours, theirs)), *tensors)


@given(st.sampled_from(list(MODES)), st.sampled_from([torch.bfloat16, torch.float16]), st.integers(2, 12), seeds)
def test_half_types_are_nearer_to_the_exact_loss_and_float32(mode, dtype, count, seed):
    tensors, negative_mode = arguments(mode, count, 6, dtype=dtype, seed=seed)
    call, other = (partial(x.info_nce, negative_mode=negative_mode, temperature=0.5) for x in (ours, theirs))
    (value, gradients), (rounded, _) = with_gradients(call, tensors), with_gradients(other, tensors)
    exact, exact_gradients = with_gradients(other, [x.double() for x in tensors])
    assert value.dtype == torch.float32
    assert rounded.dtype == dtype
    assert (value - exact).abs() <= (rounded - exact).abs() + 1e-4
    for got, truth in zip(gradients, exact_gradients, strict=True):
        assert got.dtype == dtype
        close(got, truth, RELATIVE[dtype])


def test_a_zero_row_in_float16_is_a_similarity_of_zero_where_theirs_is_nan():
    (query, positive, negatives), _ = arguments("unpaired", 4, 6, dtype=torch.float16)
    query[1] = 0
    assert theirs.info_nce(query, positive, negatives).isnan()
    loss, gradients = with_gradients(partial(ours.info_nce, reduction="none"), [query, positive, negatives])
    assert loss[1].item() == pytest.approx(torch.tensor(6.0).log().item(), abs=1e-6)  # of 1 + 5 equal logits
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("mode", list(MODES))
def test_zero_rows(mode):
    tensors, negative_mode = arguments(mode, 5, 4)
    tensors[0][2], tensors[-1][1] = 0, 0
    call, other = (partial(x.info_nce, negative_mode=negative_mode, reduction="none") for x in (ours, theirs))
    torch.testing.assert_close(call(*tensors), other(*tensors))
    _, gradients = with_gradients(call, tensors)
    assert all(x.isfinite().all() for x in gradients)


def test_nan_gives_nan():
    (query, positive), _ = arguments("in batch", 4, 3)
    positive[2, 1] = float("nan")
    assert ours.info_nce(query, positive).isnan()


BAD = {
    "query": lambda q, p, u, n: (q[0], p),
    "query and positive": lambda q, p, u, n: (n, n),
    "positive": lambda q, p, u, n: (q, p[None]),
    "positive and negatives": lambda q, p, u, n: (q, n, n),
    "unpaired": lambda q, p, u, n: (q, p, n),
    "unpaired, and fewer positives": lambda q, p, u, n: (q, p[1:], n),
    "fewer positives": lambda q, p, u, n: (q, p[1:]),
    "fewer positives, and columns": lambda q, p, u, n: (q, p[1:, 1:]),
    "columns of positives": lambda q, p, u, n: (q, p[:, 1:]),
    "columns of both": lambda q, p, u, n: (q, p[:, 1:], u[:, 2:]),
    "columns of negatives": lambda q, p, u, n: (q, p, u[:, 1:]),
    "no tensor": lambda q, p, u, n: ([1.0], p),
}
BAD_PAIRED = {
    "paired": lambda q, p, u, n: (q, p, u),
    "fewer negatives": lambda q, p, u, n: (q, p, n[1:]),
    "fewer negatives, and columns": lambda q, p, u, n: (q, p, n[1:, :, 1:]),
    "columns of negatives": lambda q, p, u, n: (q, p, n[:, :, 1:]),
}


@pytest.mark.parametrize("mode", ["unpaired", "paired"])
def test_errors_are_theirs_in_their_order(mode):
    (q, p, u), n = arguments("unpaired", 4, 3)[0], torch.randn(4, 5, 3)
    for make in (BAD if mode == "unpaired" else BAD_PAIRED).values():
        bad = make(q, p, u, n)
        assert_same_error(
            lambda bad=bad: ours.info_nce(*bad, negative_mode=mode),
            lambda bad=bad: theirs.info_nce(*bad, negative_mode=mode),
        )
        assert_same_error(lambda bad=bad: ours.InfoNCE(negative_mode=mode)(*bad),
                          lambda bad=bad: theirs.InfoNCE(negative_mode=mode)(*bad))  # fmt: skip


def test_another_negative_mode_is_named_where_theirs_is_an_unbound_local():
    (query, positive, negatives), _ = arguments("unpaired", 4, 3)
    with pytest.raises(UnboundLocalError):
        theirs.info_nce(query, positive, negatives, negative_mode="both")
    with pytest.raises(ValueError, match=r"^negative_mode: expected unpaired or paired, got 'both'$"):
        ours.info_nce(query, positive, negatives, negative_mode="both")
    # Theirs looks at it only with negatives, and after the shapes.
    assert ours.info_nce(query, positive, negative_mode="both") == ours.info_nce(query, positive)
    assert_same_error(
        lambda: ours.info_nce(query, positive, negatives[:, 1:], negative_mode="both"),
        lambda: theirs.info_nce(query, positive, negatives[:, 1:], negative_mode="both"),
    )


def test_other_reductions_are_refused():
    (query, positive), _ = arguments("in batch", 4, 3)
    calls = (partial(x.info_nce, query, positive, reduction="max") for x in (ours, theirs))
    assert_same_error(*calls, same_text=False)


def test_no_rows_are_refused_where_theirs_is_nan():
    assert theirs.info_nce(torch.zeros(0, 3), torch.zeros(0, 3)).isnan()
    with pytest.raises(ValueError, match=r"at least one row"):
        ours.info_nce(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("mode", ["unpaired", "paired"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_negatives_are_no_loss(mode, reduction):
    tensors, _ = arguments(mode, 3, 4, negatives=0)
    assert_agree(*(partial(x.info_nce, negative_mode=mode, reduction=reduction) for x in (ours, theirs)), *tensors)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_that_is_a_tensor_gets_its_gradient(shape):
    tensors, _ = arguments("unpaired", 6, 4)
    temperature = torch.full(shape, 0.3)
    calls = (lambda q, p, n, t, x=x: x.info_nce(q, p, n, temperature=t).sum() for x in (ours, theirs))
    assert_agree(*calls, *tensors, temperature)
    learnable = torch.nn.Parameter(temperature)
    assert [name for name, _ in ours.InfoNCE(learnable).named_parameters()] == ["temperature"]


@pytest.mark.parametrize("temperature", [0, torch.full((6, 1), 0.3)], ids=["zero", "one a query"])
def test_temperatures_that_theirs_divides_by_and_ours_refuses(temperature):
    tensors, _ = arguments("unpaired", 6, 4)
    theirs.info_nce(*tensors, temperature=temperature)
    with pytest.raises(ValueError, match=r"^temperature: "):
        ours.info_nce(*tensors, temperature=temperature)


def test_signatures_attributes_and_names():
    assert ours.__all__ == theirs.__all__
    for name in ours.__all__:
        got, expected = (inspect.signature(getattr(x, name)).parameters for x in (ours, theirs))
        assert [(x.name, x.default, x.kind) for x in got.values()] == [
            (x.name, x.default, x.kind) for x in expected.values()
        ]
    got, expected = ours.InfoNCE(0.2, "sum", "paired"), theirs.InfoNCE(0.2, "sum", "paired")
    assert {name: getattr(got, name) for name in ("temperature", "reduction", "negative_mode")} == {
        name: getattr(expected, name) for name in ("temperature", "reduction", "negative_mode")
    }
    assert got.state_dict() == expected.state_dict() == {}
    assert ours.info_nce is not ssl_fast.functional.info_nce


def test_options_are_read_at_each_call():
    (query, positive), _ = arguments("in batch", 5, 4)
    modules = ours.InfoNCE(), theirs.InfoNCE()
    for module in modules:
        module.temperature, module.reduction = 0.7, "sum"
    assert_agree(*modules, query, positive)
    for module in (copy.deepcopy(modules[0]), pickle.loads(pickle.dumps(modules[0]))):
        assert module(query, positive) == modules[0](query, positive)


@given(st.sampled_from(list(MODES)), st.sampled_from(["transposed", "every other row", "expanded"]))
def test_strides(mode, layout):
    tensors, negative_mode = arguments(mode, 6, 4)
    layouts = {
        "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
        "expanded": lambda x: x[:1].expand(x.shape),
    }
    call, other = (partial(x.info_nce, negative_mode=negative_mode) for x in (ours, theirs))
    laid_out = [layouts[layout](x) for x in tensors]
    torch.testing.assert_close(call(*laid_out), other(*laid_out))


def test_autocast_and_keys_of_another_dtype():
    (query, positive, negatives), _ = arguments("unpaired", 6, 4)
    half = query.bfloat16()  # of an encoder under autocast; the keys were stored in float32
    with torch.autocast("cpu", torch.bfloat16):
        got, mixed = (ours.info_nce(x, positive, negatives) for x in (query, half))
        rounded = theirs.info_nce(half, positive, negatives)
    assert got.dtype == mixed.dtype == rounded.dtype == torch.float32
    close(got, theirs.info_nce(query, positive, negatives), 1e-5)
    exact = theirs.info_nce(half.float(), positive, negatives)
    close(mixed, exact, 1e-5)
    close(rounded, exact, 1e-1)


def test_second_derivatives_are_refused_which_theirs_has():
    (query, positive), _ = arguments("in batch", 4, 3)
    query.requires_grad_()
    first = [torch.autograd.grad(x.info_nce(query, positive), query, create_graph=True)[0] for x in (ours, theirs)]
    first[1].sum().backward()
    with pytest.raises(RuntimeError, match="not implemented"):
        first[0].sum().backward()


def test_patch_swaps_and_unpatch_restores():
    original = theirs.InfoNCE, theirs.info_nce
    with ssl_fast.patch("info-nce"):
        assert (theirs.InfoNCE, theirs.info_nce) == (ours.InfoNCE, ours.info_nce)
        tensors, _ = arguments("unpaired", 6, 4)
        patched = theirs.InfoNCE()(*tensors)
    assert (theirs.InfoNCE, theirs.info_nce) == original
    torch.testing.assert_close(patched, theirs.InfoNCE()(*tensors))


@pytest.mark.long
def test_importing_ours_does_not_import_theirs():
    code = "import sys, ssl_fast.compat.info_nce; sys.exit('info_nce' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_compiled():
    tensors, _ = arguments("unpaired", 6, 4)
    loss = ours.InfoNCE(0.2)
    assert_agree(torch.compile(loss, fullgraph=True), loss, *tensors)


@pytest.mark.slow
def test_the_example_learns():
    printed = run_example("info_nce_digits", "--steps", "40")
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed) + 0.02
    first, *_, last = losses(printed)
    assert last < first - 0.5
