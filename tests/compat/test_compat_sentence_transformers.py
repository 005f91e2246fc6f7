"""ssl_fast.compat.sentence_transformers beside the installed library. No model is downloaded: they are made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy
import inspect
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from agreement import RELATIVE, assert_agree, assert_same_error, close, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_models import bert, features, static
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer import losses as theirs
from torch import nn

import ssl_fast
from ssl_fast.compat import own_path
from ssl_fast.compat import sentence_transformers as ours
from tests.helpers.examples import number, run_example
from tests.helpers.processes import run

NAMES = [name for names in ours.REPLACES.values() for name in names]
DIRECTIONS = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"
MODES = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]

pytestmark = pytest.mark.filterwarnings("ignore:The .*SymmetricRankingLoss is deprecated:DeprecationWarning")
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return bert(str(tmp_path_factory.mktemp("bert")))


def both(name, model=None, **options):
    model = model or nn.Identity()
    if name.startswith("Cached") and not isinstance(model, SentenceTransformer):
        model = nn.Sequential(model)
    return getattr(ours, name)(model, **options), getattr(theirs, name)(model, **options)


def on_embeddings(loss):
    """The loss of its embeddings as a function of them."""
    if isinstance(loss, theirs.CachedMultipleNegativesRankingLoss):
        return lambda *columns: loss.calculate_loss([list(column.split(2)) for column in columns])
    return lambda *columns: loss.compute_loss_from_embeddings(list(columns), None)


def in_float64(call):
    return lambda *columns: call(*(column.double() for column in columns))


def embeddings(columns, count, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(columns)]


@st.composite
def settings_of(draw):
    directions = draw(st.sets(st.sampled_from(DIRECTIONS[1:])))
    pairs_only = not directions & {"query_to_query", "doc_to_doc"}
    mode = draw(st.sampled_from(MODES))
    return {
        "scale": draw(st.sampled_from([1.0, 20.0, 7]) | st.floats(0.5, 30)),
        "similarity_fct": draw(st.sampled_from([util.cos_sim, util.dot_score])),
        "directions": ("query_to_doc", *sorted(directions)),
        "partition_mode": draw(st.sampled_from(["joint", "per_direction"])) if pairs_only else "joint",
        "hardness_mode": mode,
        "hardness_strength": draw(st.floats(0.5, 9)) if mode else 0.0,
    }


# Values and gradients


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
@given(
    options=settings_of(),
    columns=st.integers(2, 4),
    count=st.integers(1, 6),
    dim=st.integers(1, 8),
    dtype=st.sampled_from(list(RELATIVE)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=max(150, settings.default.max_examples))
def test_every_option_agrees_with_the_library_in_float64(name, options, columns, count, dim, dtype, seed):
    loss, library = both(name, **options)
    given_embeddings = embeddings(columns, count, dim, dtype, seed)
    # Half inputs are float32 inside on both sides; only their gradients are rounded to them.
    relative = max(RELATIVE[dtype], 1e-5) if dtype != torch.float64 else None
    # Of one number a row has no direction to change: terms of the size scale / (count |x|) cancel to 0.
    norm = min(x.double().norm(dim=1).min().item() for x in given_embeddings)
    least = max(1e-2, 0.1 * options["scale"] / (count * norm))
    call, in_theirs = on_embeddings(loss), in_float64(on_embeddings(library))
    assert_agree(call, in_theirs, *given_embeddings, relative=relative, least=least)


@given(options=settings_of(), columns=st.integers(2, 3), count=st.integers(2, 6), seed=st.integers(0, 1000))
def test_in_float32_ours_is_as_near_to_the_library_as_that_is_to_itself_in_float64(options, columns, count, seed):
    loss, library = both("MultipleNegativesRankingLoss", **options)
    given_embeddings = embeddings(columns, count, 8, torch.float32, seed)
    value, expected, exact = (
        with_gradients(call, given_embeddings)[0].double()
        for call in (on_embeddings(loss), on_embeddings(library), in_float64(on_embeddings(library)))
    )
    assert abs(value - expected) <= abs(expected - exact) + 1e-5 * abs(exact) + 1e-7


@every_name
@given(
    columns=st.integers(2, 4),
    count=st.integers(1, 6),
    similarity_fct=st.sampled_from([util.cos_sim, util.dot_score]),
    seed=st.integers(0, 1000),
)
def test_all_four_with_their_own_directions(name, columns, count, similarity_fct, seed):
    loss, library = both(name, scale=5.0, similarity_fct=similarity_fct)
    assert_agree(on_embeddings(loss), on_embeddings(library), *embeddings(columns, count, 5, torch.float64, seed))


@pytest.mark.parametrize("dim", [384, 1024])
def test_the_dimensions_of_usual_models(dim):
    loss, library = both("MultipleNegativesSymmetricRankingLoss")
    assert_agree(on_embeddings(loss), in_float64(on_embeddings(library)), *embeddings(3, 16, dim))


def test_non_contiguous_embeddings():
    loss, library = both("MultipleNegativesRankingLoss", directions=DIRECTIONS)
    stored = torch.randn(8, 3, 6, dtype=torch.float64)
    columns = list(stored.permute(1, 2, 0))
    assert not any(x.is_contiguous() for x in columns)
    assert_agree(on_embeddings(loss), on_embeddings(library), *columns)


@pytest.mark.parametrize("directions", [DIRECTIONS[:1], DIRECTIONS])
def test_a_zero_row_has_similarity_0_and_finite_gradients(directions):
    loss, library = both("MultipleNegativesRankingLoss", directions=directions)
    queries, docs = embeddings(2, 4, 5, torch.float64)
    queries[1], docs[2] = 0, 0
    value, (gradient, _) = with_gradients(on_embeddings(loss), [queries, docs])
    assert gradient.isfinite().all()
    close(value, with_gradients(on_embeddings(library), [queries, docs])[0], 1e-11)


def test_nan_in_gives_nan_out():
    loss, _ = both("MultipleNegativesRankingLoss", directions=DIRECTIONS)
    queries, docs = embeddings(2, 4, 5)
    queries[1, 0] = float("nan")
    assert on_embeddings(loss)(queries, docs).isnan()


def test_ours_keeps_float32_under_autocast_where_the_librarys_similarities_are_rounded():
    loss, library = both("MultipleNegativesRankingLoss", scale=50.0)
    columns = embeddings(2, 32, 16)
    exact = in_float64(on_embeddings(library))(*columns)
    with torch.autocast("cpu", torch.bfloat16):
        value, rounded = on_embeddings(loss)(*columns), on_embeddings(library)(*columns)
    assert (value.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert abs(value - exact) < 1e-5 * exact
    assert abs(rounded - exact) > 1e-4 * exact


@pytest.mark.parametrize("columns", [2, 3])
def test_ours_is_right_where_the_librarys_small_loss_is_rounding(columns):
    # Of a logit of 50 the library subtracts a log-sum-exp of 50: what is left is below its last place.
    loss, library = both("MultipleNegativesRankingLoss", scale=50.0)
    eye = torch.eye(4)
    columns = [eye + 0.2, eye + 0.3, -eye][:columns]
    exact, gradients = with_gradients(in_float64(on_embeddings(library)), columns)
    assert 0 < exact < 1e-5
    value, mine = with_gradients(on_embeddings(loss), columns)
    assert abs(value - exact) < 1e-2 * exact
    for got, truth in zip(mine, gradients, strict=True):
        assert (got - truth).abs().max() < 1e-2 * truth.abs().max()
    assert abs(on_embeddings(library)(*columns) - exact) > 0.1 * exact


# Signatures, attributes, errors, warnings


@every_name
def test_signature_and_classes(name):
    mine, library = getattr(ours, name), getattr(theirs, name)
    assert inspect.signature(mine) == inspect.signature(library)
    assert list(inspect.signature(mine.forward).parameters) == list(inspect.signature(library.forward).parameters)
    assert issubclass(mine, library)
    if "Symmetric" in name:
        assert issubclass(mine, getattr(ours, name.replace("Symmetric", "")))


@every_name
def test_attributes_config_and_citation(name):
    loss, library = both(name, static() if not name.startswith("Cached") else None, scale=13.0)
    assert loss.get_config_dict() == library.get_config_dict()
    assert loss.citation == library.citation
    assert loss.temperature == library.temperature
    assert loss.state_dict().keys() == library.state_dict().keys()
    assert vars(loss).keys() == vars(library).keys()


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0},
        {"scale": -1.0},
        {"directions": ()},
        {"directions": ("doc_to_query",)},
        {"directions": ("query_to_doc", "up")},
        {"partition_mode": "other"},
        {"partition_mode": "per_direction", "directions": DIRECTIONS},
        {"hardness_mode": "other"},
        {"hardness_strength": -1.0},
    ],
)
@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_refused_options(name, options):
    model = nn.Sequential(nn.Identity())
    assert_same_error(lambda: getattr(ours, name)(model, **options), lambda: getattr(theirs, name)(model, **options))


def test_refused_embeddings_and_models():
    loss, library = both("MultipleNegativesRankingLoss")
    one = embeddings(1, 3, 4)
    assert_same_error(lambda: on_embeddings(loss)(*one), lambda: on_embeddings(library)(*one))
    cached = "CachedMultipleNegativesRankingLoss"
    assert_same_error(lambda: getattr(ours, cached)(static()), lambda: getattr(theirs, cached)(static()))


@every_name
def test_another_similarity_runs_the_librarys_code_and_says_so_once(name):
    own_path.say_own_path.cache_clear()
    loss, library = both(name, similarity_fct=util.euclidean_sim)
    columns = embeddings(3, 4, 5, torch.float64)
    with pytest.warns(UserWarning, match=r"sentence_transformers: a similarity_fct other than cos_sim and dot_score"):
        assert_agree(on_embeddings(loss), on_embeddings(library), *columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_embeddings(loss)(*columns)


def test_sparse_embeddings_are_refused_as_there():
    loss, library = both("MultipleNegativesRankingLoss")
    columns = [x.relu().to_sparse() for x in embeddings(2, 4, 5)]
    with pytest.raises(NotImplementedError):
        on_embeddings(library)(*columns)
    with pytest.raises(TypeError, match="expected a dense tensor"):
        on_embeddings(loss)(*columns)


@pytest.mark.parametrize("name", [name for name in NAMES if "Symmetric" in name])
def test_the_symmetric_ones_are_deprecated_as_there(name):
    for module in (ours, theirs):
        with pytest.warns(DeprecationWarning, match=f"The {name} is deprecated"):
            getattr(module, name)(nn.Sequential(nn.Identity()))


# With models


@every_name
def test_a_step_gives_the_models_parameters_the_same_gradients(name, transformer):
    gradients = []
    options = {"mini_batch_size": 2} if name.startswith("Cached") else {}
    for loss in both(name, transformer, **options):
        transformer.zero_grad()
        loss(features(transformer), None).backward()
        gradients.append([x.grad.clone() for x in transformer.parameters() if x.grad is not None])
    assert len(gradients[0]) > 5
    for got, truth in zip(*gradients, strict=True):
        close(got, truth, 1e-4)  # the model's own rounding


@every_name
def test_as_the_inner_loss_of_matryoshka(name, transformer):
    results = []
    for loss in both(name, transformer):
        transformer.zero_grad()
        outer = theirs.MatryoshkaLoss(transformer, loss, [8, 4, 2], [1, 0.5, 0.25])
        value = outer(features(transformer), None)
        value.backward()
        assert outer.get_config_dict()["loss"] == name
        results.append([value.detach(), *(x.grad.clone() for x in transformer.parameters() if x.grad is not None)])
    for got, truth in zip(*results, strict=True):
        close(got, truth, 1e-4)


def test_the_cached_loss_without_gradients(transformer):
    loss, library = both("CachedMultipleNegativesRankingLoss", transformer, mini_batch_size=2)
    with torch.no_grad():
        close(loss(features(transformer), None), library(features(transformer), None), 1e-5)
    loss.scale = 3.0  # the library hands it on to the loss within
    assert loss.get_config_dict()["scale"] == loss.loss.scale == 3.0


@every_name
def test_deepcopy_and_pickle(name):
    model = nn.Sequential(nn.Linear(2, 2))
    loss, columns = getattr(ours, name)(model, scale=4.0), embeddings(2, 4, 5)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(copied) is type(loss)
        assert torch.equal(on_embeddings(copied)(*columns), on_embeddings(loss)(*columns))


def test_patch_swaps_and_restores():
    from sentence_transformers.sentence_transformer.losses import cached_multiple_negatives_ranking as inside

    before = inside.MultipleNegativesRankingLoss
    with ssl_fast.patch("sentence-transformers"):
        assert all(getattr(theirs, name) is getattr(ours, name) for name in NAMES)
        assert inside.MultipleNegativesRankingLoss is ours.MultipleNegativesRankingLoss
        cached = theirs.CachedMultipleNegativesRankingLoss(nn.Sequential(nn.Identity()))
        assert type(cached.loss) is ours.MultipleNegativesRankingLoss
        columns = embeddings(2, 4, 5)
        assert on_embeddings(cached)(*columns).isfinite()
    assert inside.MultipleNegativesRankingLoss is before
    assert not any(getattr(theirs, name) is getattr(ours, name) for name in NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("directions", [DIRECTIONS[:1], DIRECTIONS])
def test_torch_compile(directions):
    loss, _ = both("MultipleNegativesRankingLoss", directions=directions)
    compiled = torch.compile(on_embeddings(loss), fullgraph=True, backend="aot_eager")
    assert_agree(compiled, on_embeddings(loss), *embeddings(3, 5, 6))


# Processes


def gathered(rank, world):
    """Ours and the library's: values, and gradients of all columns, in this rank."""
    found = []
    for options in ({}, {"directions": DIRECTIONS}, {"hardness_mode": "all_negatives", "hardness_strength": 2.0}):
        for name in ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"):
            columns = embeddings(3, 3, 4, torch.float64, seed=rank)
            results = []
            for loss in both(name, gather_across_devices=True, **options):
                value, gradients = with_gradients(on_embeddings(loss), columns)
                results.append([value.tolist(), [x.tolist() for x in gradients]])
            found.append(results)
    # Without further directions it is the contract of group=.
    columns = embeddings(2, 3, 4, torch.float64, seed=rank)
    with_group = with_gradients(
        lambda q, d: ssl_fast.functional.info_nce(q, d, None, 1 / 20, group=dist.group.WORLD), columns
    )
    mine = with_gradients(on_embeddings(both("MultipleNegativesRankingLoss", gather_across_devices=True)[0]), columns)
    found.append([[x[0].tolist(), [g.tolist() for g in x[1]]] for x in (mine, with_group)])
    return found


@pytest.mark.long
def test_gathered_across_two_processes():
    for results in run(2, gathered):
        for (value, gradients), (expected, expected_gradients) in results:
            close(torch.tensor(value), torch.tensor(expected), 1e-6)
            close(torch.tensor(gradients), torch.tensor(expected_gradients), 1e-6)


@pytest.mark.slow
def test_the_example():
    printed = run_example("sentence_transformers_docstrings", "--steps", "60")
    assert number("accuracy@1 after", printed) > number("accuracy@1 before", printed) + 0.05
