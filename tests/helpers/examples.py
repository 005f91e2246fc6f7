"""Runs the scripts under examples/ as a user would run them, and reads what they print."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_example(name: str, *options: str) -> str:
    """What examples/{name}.py prints."""
    command = [sys.executable, f"examples/{name}.py", *options]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def number(label: str, printed: str) -> float:
    """The first number after the label, on its line."""
    found = re.search(re.escape(label) + r"[^\d\n]*(\d+\.\d+)", printed)
    assert found, f"no {label!r} in\n{printed}"
    return float(found[1])


def losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss +(\d+\.\d+)", printed)]
