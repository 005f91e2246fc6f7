"""What works with what, as one table: `python -m pytest tests/pytorch/test_matrix.py -s` prints it."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from ssl_fast import functional
from tests.helpers import matrix
from tests.helpers.backends import only_compiled

# Gaps that are known: (row, column) and why.
KNOWN: dict[tuple[str, str], str] = {}


def subjects():
    """Losses, updates and the operators that they call, by name; of an operator that cannot be called here, why."""
    found = {f"functional.{name}": matrix.loss_subject(name) for name in functional.__all__ if name != "nce_normalizer"}
    found |= matrix.UPDATES
    calls = {}
    for subject in found.values():
        for operator, call in matrix.calls_of(subject).items():
            calls.setdefault(operator._schema.name, (operator, call))
    for name in sorted(x for x in torch._C._dispatch_get_all_op_names() if x.startswith("ssl_fast::")):
        if name in calls and not name.endswith("_backward"):
            found[name] = matrix.operator_subject(*calls[name])
        elif name not in calls:
            here = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
            found[name] = "no: nothing calls it" if here else "- no kernel for the CPU"
    return found


def cell(subject, probe) -> str:
    if isinstance(subject, str):
        return subject
    try:
        return probe(subject)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"no: {type(error).__name__}: {lines[0] if lines else ''}"


def table(cells) -> str:
    """Columns of words; the reasons below, by number."""
    reasons, lines = [], []
    width = max(map(len, cells)) + 2
    for name, row in cells.items():
        words = []
        for column, text in row.items():
            word, _, reason = text.partition(" ")
            if word == "no:":
                reasons.append(f"[{len(reasons) + 1}] {name}, {column}: {reason}")
                word = f"no [{len(reasons)}]"
            words.append(word.ljust(len(column) + 2))
        lines.append(name.ljust(width) + "".join(words))
    header = "".ljust(width) + "".join(f"{column}  " for column in matrix.PROBES)
    dashes = sorted({text for row in cells.values() for text in row.values() if text.startswith("-")})
    return "\n".join(["", header, *lines, "", *dashes, *reasons])


@pytest.mark.long
@only_compiled
def test_every_cell_is_yes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = {
            name: {column: cell(subject, probe) for column, probe in matrix.PROBES.items()}
            for name, subject in subjects().items()
        }
    print(table(cells))
    failed = {(name, column): x for name, row in cells.items() for column, x in row.items() if x[:2] == "no"}
    assert not failed.keys() - KNOWN.keys(), "\n".join(failed.values())
    assert failed.keys() == KNOWN.keys(), "a known gap is none any more: take it off the list"
    if KNOWN:
        pytest.xfail("; ".join(KNOWN.values()))


@only_compiled
def test_the_docs_show_every_row():
    shown = (Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
    rows = re.findall(r"^(\S+) +(?:yes|-) ", shown, re.MULTILINE)
    assert set(rows) == set(subjects())
    assert "eager  " + "  ".join(list(matrix.PROBES)[1:]) in shown
