"""The similarity operators' kernels in Triton's interpreter, against plain formulas in float64."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ssl_fast.kernels import pair_similarity, similarity_lse, similarity_softplus
from tests.helpers.compare import assert_close
from tests.helpers.similarity_cases import (
    ALL,
    IDS_DIFFER,
    IDS_EQUAL,
    NOT_SELF,
    Problem,
    allowed,
    assert_gradient,
    check_lse,
    check_ranks,
    check_softplus,
    coarsest,
    equal_rows,
    pairs_of,
    unit_rows,
)
from tests.helpers.strategies import (
    DTYPES,
    dims,
    dtypes,
    embeddings,
    kinds,
    lay_out,
    layouts,
    rows,
    seeds,
    temperatures,
    upstream,
    upstream_kinds,
)

FORMS = ["with each other", "one way", "both ways"]
# Norms for which rows as they are have dots of a size that float32 resolves.
PLAIN_KINDS = ["ordinary", "equal", "duplicates", "zeros", "opposite", "one-hot"]


def ids_of(count: int, seed: int) -> torch.Tensor:
    """Ids that occur several times, some of them equal in their lower 32 bits, in strides."""
    ids = torch.randint(max(1, count // 3), (count,), generator=torch.Generator().manual_seed(seed))
    ids = torch.where(ids % 2 == 0, ids // 2, ids // 2 + (1 << 40))
    return torch.stack([ids, ids], 1)[:, 0]


def problem_of(form, n, m, dim, dtype, mask, temperature, seed=0, kind="ordinary", other_dtype=None, **options):
    symmetric = form == "with each other"
    with_ids = mask in (IDS_DIFFER, IDS_EQUAL)
    a = embeddings(n, dim, dtype, kind, seed)
    b = None if symmetric else embeddings(m, dim, other_dtype or dtype, kind, seed + 1)
    ids_a = ids_of(n, seed) if with_ids else None
    ids_b = ids_of(m, seed + 1) if with_ids and not symmetric else None
    return Problem(a, b, ids_a, ids_b, mask, columns=form == "both ways", given_scale=1 / temperature, **options)


def upstream_of(problem, seed=0, kind="random"):
    counts = [len(problem.a)] + [len(problem.inputs[-1])] * problem.columns
    return [upstream(count, seed + i, kind) for i, count in enumerate(counts)]


@pytest.mark.slow  # test_primitive_interpreted.py draws such inputs too
@given(
    form=st.sampled_from(FORMS), n=rows, m=rows, dim=st.one_of(dims, st.just(300)), dtype=dtypes,
    mask=st.sampled_from([ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL]), kind=kinds, layout=layouts, seed=seeds,
    temperature=temperatures, learnt=st.booleans(), upstream_kind=upstream_kinds,
)  # fmt: skip
def test_any_unit_rows(form, n, m, dim, dtype, mask, kind, layout, seed, temperature, learnt, upstream_kind):
    problem = problem_of(form, n, m, dim, dtype, mask, temperature, seed, kind)
    problem = problem._replace(
        a=lay_out(problem.a, layout),
        b=None if problem.b is None else lay_out(problem.b, layout),
        given_scale=torch.tensor(1 / temperature, dtype=torch.float64) if learnt else 1 / temperature,
    )
    check_lse(problem, upstream_of(problem, seed, upstream_kind))


@pytest.mark.slow  # test_primitive_interpreted.py draws such inputs too
@given(
    form=st.sampled_from(FORMS), n=rows, m=rows, dim=dims, dtype=dtypes, seed=seeds, kind=st.sampled_from(PLAIN_KINDS),
    mask=st.sampled_from([ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL]), temperature=st.floats(0.5, 2),
    normalize=st.tuples(st.booleans(), st.booleans()),
)  # fmt: skip
def test_rows_as_they_are(form, n, m, dim, dtype, seed, kind, mask, temperature, normalize):
    problem = problem_of(form, n, m, dim, dtype, mask, temperature, seed, kind, normalize=normalize)
    if problem.b is None:
        problem = problem._replace(normalize=(normalize[0], normalize[0]))
    check_lse(problem, upstream_of(problem, seed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", [ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL])
@pytest.mark.parametrize("temperature", [0.1, 0.02, torch.tensor(-0.1)], ids=str)
def test_several_blocks(form, mask, temperature):
    problem = problem_of(form, 150, 290, 70, torch.float32, mask, temperature)
    check_lse(problem, upstream_of(problem))


@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_both_sides(dtype, other):
    for form in ("one way", "both ways"):
        problem = problem_of(form, 20, 33, 32, dtype, ALL, 0.1, other_dtype=other)
        check_lse(problem, upstream_of(problem))


@pytest.mark.slow  # test_primitive_interpreted.py draws such inputs too
@given(n=rows, dim=dims, dtype=dtypes, kind=kinds, seed=seeds, temperature=temperatures, form=st.sampled_from(FORMS),
       mask=st.sampled_from([ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL]))  # fmt: skip
def test_ranks(n, dim, dtype, kind, seed, temperature, form, mask):
    check_ranks_of(n, dim, dtype, kind, seed, temperature, form, mask)


@pytest.mark.parametrize("temperature", [0.1, -0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_ranks_of_several_blocks(form, dtype, temperature):
    check_ranks_of(150, 40, dtype, "duplicates", 0, temperature, form, NOT_SELF)


def check_ranks_of(n, dim, dtype, kind, seed, temperature, form, mask):
    """Ranks of each row's partner, and both ways of each column's."""
    problem = problem_of(form, n, n, dim, dtype, mask, temperature, seed, kind)
    if form == "with each other":  # the rows of both halves, with their partners
        n, half = 2 * n, n
        a, b = problem.a, embeddings(half, dim, dtype, kind, seed + 1)
        positive = pairs_of(a, b).repeat(2)
        problem = problem._replace(a=torch.cat([a, b]), ids_a=None if problem.ids_a is None else ids_of(n, seed))
        equal = equal_rows(problem.a)[(torch.arange(n) + half) % n]
        by_row = [equal]
    else:
        positive = pairs_of(problem.a, problem.b)
        by_row = [equal_rows(problem.b), equal_rows(problem.a)][: 1 + problem.columns]
    ranks = similarity_lse.similarity_lse(
        *problem[:5], True, True, problem.columns, 1 / temperature, None, positive
    )[2]  # fmt: skip
    check_ranks(problem, ranks, positive, by_row)


def test_nothing_counts():
    """Rows and columns of which the mask leaves nothing: -Inf, no gradient, and no NaN elsewhere."""
    a, b = torch.randn(70, 9), torch.randn(40, 9)
    ids_a, ids_b = torch.zeros(70, dtype=torch.int64), torch.zeros(40, dtype=torch.int64)
    ids_a[5], ids_b[7] = 1, 1
    for mask, columns in ((IDS_DIFFER, True), (IDS_DIFFER, False), (IDS_EQUAL, True)):
        for scale in (10.0, 50.0):
            problem = Problem(a, b, ids_a, ids_b, mask, columns=columns, given_scale=scale)
            lse = check_lse(problem, upstream_of(problem))[0]
            assert torch.equal(lse == float("-inf"), ~allowed(problem).any(1))
    alone = Problem(a[:1], None, mask=NOT_SELF)
    assert check_lse(alone, upstream_of(alone))[0].item() == float("-inf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_rows(form, normalize, bad, dtype):
    problem = problem_of(form, 20, 37, 16, dtype, ALL, 0.1, normalize=(normalize, normalize))
    problem.inputs[-1][3, 2] = bad
    lse, column_lse, _, sums = similarity_lse.similarity_lse(
        *problem[:5], *problem.normalize, problem.columns, 10.0, None, None
    )
    assert lse.isnan().all()
    assert not problem.columns or column_lse.isnan()[3]
    ones = torch.ones_like(lse)
    da, db, _ = similarity_lse.similarity_lse_backward(
        ones, torch.ones_like(column_lse) if problem.columns else None, *problem[:5], *problem.normalize, 10.0, None,
        sums, True, True,
    )  # fmt: skip
    assert da.isnan().any(1).all()
    assert problem.b is None or db.isnan().any()


def test_only_what_is_asked_for():
    problem = problem_of("both ways", 20, 33, 16, torch.float32, ALL, torch.tensor(0.1))
    sums = similarity_lse.similarity_lse(*problem[:5], True, True, True, 1.0, problem.given_scale, None)[3]
    gradients = upstream_of(problem)

    def backward(*wanted):
        return similarity_lse.similarity_lse_backward(
            *gradients, *problem[:5], True, True, 1.0, problem.given_scale, sums, *wanted
        )

    full = backward(True, True)
    for wanted in ((True, False), (False, True), (False, False)):
        found = backward(*wanted)
        for i in (0, 1):
            assert torch.equal(found[i], full[i]) if wanted[i] else found[i].shape == (0,)
        torch.testing.assert_close(found[2], full[2])


@given(n=rows, dim=st.one_of(dims, st.just(300)), dtype=dtypes, kind=kinds, layout=layouts, seed=seeds,
       temperature=temperatures, learnt=st.booleans(), bias=st.sampled_from([-10.0, 0.0, 3.0, -30.0]),
       bias_dtype=dtypes, upstream_kind=upstream_kinds)  # fmt: skip
@example(n=2, dim=1, dtype=torch.float16, kind="ordinary", layout="contiguous", seed=0, temperature=1.0, learnt=True,
         bias=-30.0, bias_dtype=torch.float32, upstream_kind="random")  # fmt: skip
def test_softplus(n, dim, dtype, kind, layout, seed, temperature, learnt, bias, bias_dtype, upstream_kind):
    a, b = (lay_out(embeddings(n, dim, dtype, kind, seed + i), layout) for i in (0, 1))
    scale = torch.tensor(1 / temperature, dtype=torch.float64) if learnt else 1 / temperature
    problem = Problem(a, b, mask=NOT_SELF, given_scale=scale)
    positive = pairs_of(a, b)
    _, ranks = check_softplus(
        problem, torch.tensor(bias, dtype=bias_dtype), upstream(n, seed, upstream_kind), positive
    )  # fmt: skip
    check_ranks(problem, ranks, positive, [equal_rows(b), equal_rows(a)])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtypes", [(x, y) for x in DTYPES for y in DTYPES], ids=str)
def test_softplus_of_several_blocks(dtypes, normalize):
    a, b = (embeddings(150, 70, dtype, "ordinary", i) for i, dtype in enumerate(dtypes))
    problem = Problem(a, b, mask=NOT_SELF, normalize=(normalize, normalize), given_scale=2.0 if normalize else 0.2)
    check_softplus(problem, torch.tensor(0.0), upstream(150, 0, "random"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_bias_and_rows_of_softplus(bad):
    a, b = torch.randn(2, 20, 9).unbind()
    nothing = similarity_softplus.similarity_softplus(a, b, True, 10.0, None, torch.tensor(bad), None)[0]
    assert nothing.isnan().all()
    b[3, 2] = bad
    for normalize in (True, False):
        sums, *_ = similarity_softplus.similarity_softplus(a, b, normalize, 10.0, None, torch.tensor(-1.0), None)
        assert sums.isnan().sum() == 2 * 19  # row 3 does not meet it


@pytest.mark.slow  # test_primitive_interpreted.py draws such inputs too
@given(n=rows, dim=st.one_of(dims, st.just(300)), dtype=dtypes, other=dtypes, kind=st.sampled_from(PLAIN_KINDS),
       layout=layouts, seed=seeds, normalize=st.tuples(st.booleans(), st.booleans()))  # fmt: skip
def test_pairs(n, dim, dtype, other, kind, layout, seed, normalize):
    inputs = [lay_out(embeddings(n, dim, x, kind, seed + i), layout) for i, x in enumerate((dtype, other))]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradient = upstream(n, seed, "random").to(wide)

    def formula(arithmetic):
        exact = arithmetic == torch.float64
        leaves = [(x.double() if exact else x).detach().clone().requires_grad_() for x in inputs]
        u, v = (unit_rows(x.to(arithmetic), on) for x, on in zip(leaves, normalize, strict=True))
        similarities = (u * v).sum(1)
        return similarities.detach(), torch.autograd.grad(similarities, leaves, gradient.to(arithmetic))

    (truth, exact), (eager, by_eager) = formula(torch.float64), formula(wide)
    got = pairs_of(*inputs, normalize)
    assert got.dtype == wide
    assert got.shape == (n,)
    norms = [unit_rows(x.double(), on).norm(dim=1).max().item() for x, on in zip(inputs, normalize, strict=True)]
    assert_close(got, truth, coarsest(inputs), "loss", eager, scale=0.1 * max(1e-3, *norms) ** 2)
    found = pair_similarity.pair_similarity_backward(gradient, *inputs, *normalize)
    for x, result, expected, of_eager, name in zip(inputs, found, exact, by_eager, "ab", strict=True):
        assert_gradient(result, x, expected, of_eager, 0.1 * gradient.abs().max().item(), name, {dtype, other})


def test_arguments_that_do_not_fit():
    a, b, ids = torch.randn(5, 4), torch.randn(6, 4), torch.zeros(5, dtype=torch.int64)

    def lse(a, b=None, ids_a=None, ids_b=None, mask=0, columns=False, positive=None):
        similarity_lse.similarity_lse(a, b, ids_a, ids_b, mask, True, True, columns, 10.0, None, positive)

    for arguments, name in (
        ({"a": a[0]}, "a"),
        ({"a": a, "b": b[:, :3]}, "b"),
        ({"a": a, "mask": 4}, "mask"),
        ({"a": a, "columns": True}, "columns"),
        ({"a": a, "mask": 2}, "ids_a"),
        ({"a": a, "ids_a": ids}, "ids_a"),
        ({"a": a, "b": b, "ids_a": ids, "ids_b": ids, "mask": 2}, "ids_b"),
        ({"a": a, "positive": torch.ones(4)}, "positive"),
        ({"a": a, "b": b, "columns": True, "positive": torch.ones(5)}, "positive"),
    ):
        with pytest.raises(ValueError, match=f"^{name}:"):
            lse(**arguments)
    with pytest.raises(ValueError, match=r"^b:"):
        pair_similarity.pair_similarity(a, b, True, True)
    with pytest.raises(ValueError, match=r"^bias:"):
        similarity_softplus.similarity_softplus(a, a, True, 10.0, None, torch.ones(1), None)
