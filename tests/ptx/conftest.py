"""What the tests and `python -m ptx.report` import by name: bench/, tests/ and the comparators of tests/kernels."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "kernels", TESTS, TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
