"""The examples run as a user would run them, shortened."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern + r" +(\d+\.\d+)", text)
    assert found, f"no {pattern!r} in\n{text}"
    return float(found[1])


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", text)]


def test_product_variants_are_found_better_after_training():
    printed = run("examples/product_variants.py", "--products", "512", "--epochs", "5")
    assert number("recall@1 after training", printed) > number("recall@1 before training", printed) + 0.1


@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_the_tutorials_learn(name):
    printed = run(f"examples/{name}.py", "--steps", "100", "--batch", "128")
    first, *_, last = losses(printed)
    assert last < first - 0.5
    after = number("kNN accuracy after training", printed)
    assert after > number("kNN accuracy of raw pixels", printed) + 0.05
    assert after > number("kNN accuracy before training", printed) + 0.1


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_captions_are_found_after_training(loss):
    printed = run("examples/clip.py", "--loss", loss, "--steps", "100")
    first, *_, last = losses(printed)
    assert last < first / 2
    assert number("zero-shot accuracy after training", printed) > 0.7
