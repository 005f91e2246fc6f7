"""The example runs as a user would run it, shortened."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_product_variants_are_found_better_after_training():
    command = [sys.executable, "examples/product_variants.py", "--products", "512", "--epochs", "5"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    before, after = (
        float(re.search(rf"recall@1 {when} training +(\S+)", answer.stdout)[1]) for when in ("before", "after")
    )
    assert after > before + 0.1
