"""Mistakes that a kernel could have, made in a copy of the package: each must turn a test red.

`python tests/kernels/test_mutations.py` runs them and prints a table; here they are tests like all others.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """One mistake: `old` in the `file` of kernels/ becomes `new`; `tests` of `suite` (pytest -k) are to notice it."""

    name: str
    file: str
    old: str
    new: str
    suite: str
    tests: str


NT_XENT = "test_sizes_within_the_contract and (33-65 or 70-140) and dtype0 and 0.1"
MANY_TILES = "test_sizes_within_the_contract and 150-33 and dtype0 and 0.1"
INFO_NCE = "test_sizes_within_the_contract and dtype0 and 64-64-128"
BLOCKS = "test_several_blocks"
SOFTPLUS = "test_softplus_of_several_blocks and torch.float32 and True"
MUTATIONS = [
    Mutation("drop the diagonal mask", "mask.py", "keep &= i != k", "keep &= True", "nt_xent", NT_XENT),
    Mutation("drop the edge mask", "mask.py", "(i < rows) & (k < columns)", "(i >= 0) & (k >= 0)", "nt_xent", NT_XENT),
    Mutation(
        "look for no edges",
        "mask.py",
        "needed = (column + BLOCK_N > columns) | (row + BLOCK_M > rows)",
        "needed = column < 0",
        "nt_xent",
        MANY_TILES,
    ),
    Mutation("look for no edges of columns", "mask.py", "(column + BLOCK_N > columns) | (row + BLOCK_M > rows)",
             "row + BLOCK_M > rows", "nt_xent", MANY_TILES),
    Mutation("look for no edges of rows", "mask.py", "(column + BLOCK_N > columns) | (row + BLOCK_M > rows)",
             "column + BLOCK_N > columns", "similarity", BLOCKS + " and 0.1-0-both"),
    Mutation("drop the edge mask of columns", "mask.py", "(i < rows) & (k < columns)", "(i < rows) & (k >= 0)",
             "nt_xent", NT_XENT),
    Mutation("drop the edge mask of rows", "mask.py", "(i < rows) & (k < columns)", "(i >= 0) & (k < columns)",
             "similarity", BLOCKS + " and 0.1-0-both"),
    Mutation("look for no diagonal", "mask.py", "needed |= crosses(row, column, 0, BLOCK_M, BLOCK_N)",
             "needed |= False", "nt_xent", MANY_TILES),
    Mutation("look for no diagonal of one-way sums", "mask.py", "needed |= crosses(row, column, 0, BLOCK_M, BLOCK_N)",
             "needed |= False", "similarity", BLOCKS + " and 0.1-1-one"),
    Mutation("look for no partner above the diagonal", "mask.py",
             "crosses(row, column, half, BLOCK_M, BLOCK_N) | crosses(row, column, -half, BLOCK_M, BLOCK_N)",
             "crosses(row, column, -half, BLOCK_M, BLOCK_N)", "nt_xent", MANY_TILES),
    Mutation("look for no crossing that begins before the tile", "mask.py", "(away > -BLOCK_N)", "(away > 0)",
             "nt_xent", MANY_TILES),
    Mutation("look for no crossing that begins in the tile", "mask.py", "(away < BLOCK_M)", "(away < 1)",
             "nt_xent", MANY_TILES),
    Mutation("a partner above the diagonal only", "mask.py", "(k - i != half) & (i - k != half)", "(k - i != half)",
             "nt_xent", NT_XENT),
    Mutation("a partner below the diagonal only", "mask.py", "(k - i != half) & (i - k != half)", "(i - k != half)",
             "nt_xent", NT_XENT),
    Mutation("a walk without masks", "online_softmax.py",
             "if needs_mask(row, queries, column, keys, half, MASK, BLOCK_M, BLOCK_N):", "if column < 0:",
             "info_nce", INFO_NCE + " and in and batch"),
    Mutation("exponentials without masks", "symmetric_tiles.py",
             "if WITH_RANKS or needs_mask(row, rows, column, columns, half, MASK, BLOCK, BLOCK):", "if column < 0:",
             "nt_xent", NT_XENT),
    Mutation("ranks without masks", "symmetric_tiles.py",
             "above_rows = tl.sum((keep & (similarities", "above_rows = tl.sum(((similarities",
             "nt_xent", "test_stats_are_the_oracle and 40-dtype0-0.1"),
    Mutation("weights without masks", "weighted_rows.py",
             "if needs_mask(row, rows, column, columns, half, MASK, BLOCK_M, BLOCK_N):", "if column < 0:",
             "nt_xent", NT_XENT),
    Mutation("weights of wide rows without masks", "weighted_rows.py", "result = tl.where(keep, result, 0.0)",
             "result = tl.where(keep, result, result)", "nt_xent",
             "test_dtypes_and_small_temperature and 0.1-dtype0-130-600"),
    Mutation("TF32 cut, not rounded", "precision.py", "bits + 0x1000", "bits", "tf32", "nearest"),
    Mutation("a NaN rounded to a number", "precision.py", 'tl.where(tl.abs(x) < float("inf"), nearest, x)', "nearest",
             "tf32", "nan"),
    Mutation("TF32 rows left as they are", "unit_rows.py", "v = to_tf32(v)", "v = v", "tf32",
             "rows_are_rounded and tf32"),
    Mutation("TF32 weights left as they are", "tile.py", "weights = to_tf32(weights)", "weights = weights", "tf32",
             "test_weights_are_rounded and tf32"),
    Mutation("TF32 weights of wide rows left as they are", "weighted_rows.py", "to_tf32(result) if TF32 else result",
             "result", "tf32", "wide and tf32"),
    Mutation("a float32 queue read in place for TF32", "unit_rows.py", 'readable and kind != "tf32"', "readable",
             "tf32", "queue"),
    Mutation("another row for the partner", "mask.py", "k - i != half", "k - i != half + 1", "nt_xent", NT_XENT),
    Mutation(
        "look for no partner below the diagonal",
        "mask.py",
        "crosses(row, column, half, BLOCK_M, BLOCK_N) | crosses(row, column, -half, BLOCK_M, BLOCK_N)",
        "crosses(row, column, half, BLOCK_M, BLOCK_N)",
        "nt_xent",
        MANY_TILES,
    ),
    Mutation("a scale of another base", "scale.py", "number * math.log2(math.e)", "number", "nt_xent", NT_XENT),
    Mutation(
        "forget the column half",
        "symmetric_tiles.py",
        "_add(y_sums, tl.sum(e, 0), row_square",
        "_add(y_sums, 0 * tl.sum(e, 0), row_square",
        "nt_xent",
        NT_XENT,
    ),
    Mutation(
        "only the last tile of a square", "symmetric_tiles.py", "before + values.to(out.dtype.element_ty)",
        "values.to(out.dtype.element_ty)", "nt_xent", "test_sizes_within_the_contract and 150-33 and dtype0 and 0.1",
    ),
    Mutation(
        "one softmax for both",
        "weighted_rows.py",
        "(row_gradients[:, None] + column_gradients[None, :])",
        "(2 * row_gradients[:, None] + 0 * column_gradients[None, :])",
        "nt_xent",
        NT_XENT,
    ),
    Mutation("the positive repels", "input_gradients.py", "d -= other", "d += other", "nt_xent", NT_XENT),
    Mutation(
        "no projection", "input_gradients.py", "(d - u * projection[:, None])", "(d - 0 * projection[:, None])",
        "nt_xent", NT_XENT,
    ),
    Mutation(
        "a sum that is not rescaled",
        "online_softmax.py",
        "sum_of_exp * factor.to(tl.float64)",
        "sum_of_exp",
        "info_nce",
        INFO_NCE + " and (queue or shared)",
    ),
    Mutation(
        "pieces added as they are",
        "loss_rows.py",
        "part *= tl.exp2(maximum - highest[None, :])",
        "part *= 1",
        "info_nce",
        "test_sizes_within_the_contract and dtype1 and 37-5000 and queue",
    ),
    Mutation(
        "keys of another length", "tile.py", "weights *= factors[None, :]", "weights *= 1",
        "info_nce", "test_dtypes_of_query_and_negatives and in and batch and 0.1",
    ),
    Mutation(
        "Inf in a queue overlooked",
        "online_softmax.py",
        'float("nan"), 0.0)',
        "0.0, 0.0)",
        "info_nce",
        "test_bad_queue_row",
    ),
    Mutation(
        "a negative's own softmax", "info_nce_paired.py", "rescale = tl.exp2(before - highest)",
        "rescale = tl.exp2(before - before)", "info_nce",
        "test_sizes_within_the_contract and own and 37-5000 and dtype1",
    ),
    Mutation(
        "the pointer does not wrap", "enqueue.py", "tl.where(end >= size, end - size, end)", "end", "queue", "sequence"
    ),
    Mutation(
        "rows wrap to another place", "enqueue.py", "tl.where(place >= size, place - size, place)",
        "tl.where(place >= size, 0 * place, place)", "queue", "sequence",
    ),
    Mutation("momentum for both", "ema.py", "t * kept + s * added", "t * kept + s * kept", "ema", "lists"),
    Mutation("equal ids for different ones", "mask.py", "(of_rows != of_columns)", "(of_rows == of_columns)",
             "similarity", BLOCKS + " and 0.1-2-one"),
    Mutation("ids of 32 bits", "mask.py", "(of_rows != of_columns)",
             "(of_rows.to(tl.int32) != of_columns.to(tl.int32))", "similarity", BLOCKS + " and 0.1-2-both"),
    Mutation("itself among equal ids", "mask.py", "MASK >= IDS_EQUAL_NOT_SELF", "MASK > IDS_EQUAL_NOT_SELF",
             "similarity", BLOCKS + " and 0.1-3-with"),
    Mutation("ids on edges only", "mask.py", "needed |= True", "needed |= False",
             "similarity", BLOCKS + " and 0.1-3-one"),
    Mutation("a square's rows for its columns", "symmetric_tiles.py", "tl.program_id(0) // squares",
             "tl.program_id(0) % squares", "similarity", BLOCKS + " and 0.1-0-both"),
    Mutation("a row's positive for a column", "symmetric_tiles.py",
             "of_columns = load_vector(positive, column, columns", "of_columns = load_vector(positive, row, columns",
             "similarity", "test_ranks_of_several_blocks"),
    Mutation("two factors for one", "tile.py", "(row_factors[:, None] * column_factors[None, :])",
             "(row_factors[:, None] + column_factors[None, :])", "similarity", "test_ranks_of_several_blocks"),
    Mutation("one gradient for rows and columns", "similarity_lse.py", "SavedSums(of_columns, column_gradient, unit)",
             "SavedSums(of_columns, -column_gradient, unit)", "similarity", BLOCKS + " and 0.02-0-both"),
    Mutation("softplus without its linear part", "tile.py", "tl.where(score > 0, score, 0.0) +", "0 * score +",
             "similarity", SOFTPLUS),
    Mutation("softplus with fewer terms", "tile.py", "tl.static_range(9, 0, -2)", "tl.static_range(5, 0, -2)",
             "similarity", SOFTPLUS),
    Mutation("a sigmoid of magnitudes", "tile.py", "tl.where(score < 0, small, 1.0) /", "1.0 /",
             "similarity", SOFTPLUS),
    Mutation("a bias of another base", "scale.py", "tl.load(bias).to(tl.float64) * LOG2E",
             "tl.load(bias).to(tl.float64)", "similarity", SOFTPLUS),
    Mutation("a chunk of the width left out", "tile.py", "range(0, WIDTH, BLOCK_D):\n        x = load_rows(a, a_first",
             "range(0, BLOCK_D, BLOCK_D):\n        x = load_rows(a, a_first",
             "nt_xent", "test_dtypes_and_small_temperature and 0.1-dtype0-130-600"),
]  # fmt: skip


def copy_package(folder: Path) -> Path:
    """The package and its tests in `folder`, as an installed package lies: kernels inside ssl_fast."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "train", "packaging", "fake_cuda")
    # Links to them may lie there, where the package is not installed.
    top_folders = shutil.ignore_patterns("__pycache__", "*.so", "train", "kernels", "csrc")
    shutil.copytree(ROOT / "ssl_fast", folder / "ssl_fast", ignore=top_folders)
    for binary in (ROOT / "ssl_fast").glob("_C*.so"):
        (folder / "ssl_fast" / binary.name).symlink_to(binary)
    shutil.copytree(ROOT / "kernels", folder / "ssl_fast" / "kernels", ignore=ignored)
    for name in ("tests", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "ssl_fast" / "kernels"


def run(suite: str, tests: str, mutation: Mutation | None = None) -> subprocess.CompletedProcess:
    """The interpreted tests of a copy of the package, with the mistake if one is given."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = copy_package(Path(folder))
        if mutation:
            (path,) = kernels.rglob(mutation.file)
            source = path.read_text()
            assert mutation.old in source, f"{mutation.name}: {mutation.file} no longer holds {mutation.old!r}"
            path.write_text(source.replace(mutation.old, mutation.new))
        return subprocess.run(
            [
                sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", tests,
                f"tests/kernels/test_{suite}_interpreted.py",
            ],
            cwd=folder,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip


def noticed(answer: subprocess.CompletedProcess) -> bool:
    """A test failed, for what it asserts; a crash or a test that could not start is no answer."""
    return answer.returncode == 1 and "AssertionError" in answer.stdout


@pytest.fixture(scope="module")
def started():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {mutation: pool.submit(run, mutation.suite, mutation.tests, mutation) for mutation in MUTATIONS}


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mistake_can_be_made(mutation):
    """The list keeps up with the kernels: what a mutation changes is there, and in one place."""
    (path,) = (ROOT / "kernels").rglob(mutation.file)
    assert path.read_text().count(mutation.old) == 1


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mistake_is_noticed(mutation, started):
    answer = started[mutation].result()
    assert noticed(answer), answer.stdout


@needs_triton
@pytest.mark.slow
def test_the_copy_itself_is_right():
    """Else a test that always fails would notice everything."""
    for suite, tests in sorted({(mutation.suite, mutation.tests) for mutation in MUTATIONS[:2]}):
        answer = run(suite, tests)
        assert answer.returncode == 0, answer.stdout


if __name__ == "__main__":
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        answers = workers.map(lambda mutation: run(mutation.suite, mutation.tests, mutation), MUTATIONS)
        for mutation, answer in zip(MUTATIONS, answers, strict=True):
            print(f"{'noticed' if noticed(answer) else 'MISSED':8} {mutation.name}", flush=True)
