"""The numbers by which operators are told what is asked for; csrc/common/constants.h and kernels/ have the same."""

from __future__ import annotations

# The pairs (i, k) that count: all; k != i; those whose ids differ; those whose ids are equal.
ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL = range(4)
# A reduction's code is its place here.
REDUCTIONS = ("none", "mean", "sum")
