"""Numbers and codes that several parts share; those that the C++ engine has too are in csrc/common/constants.h."""

import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

EPS = tl.constexpr(1e-12)  # least norm that a row is divided by (ssl_fast/rows.py)
# Inverse norms from here on are 1 / EPS: of rows whose norm was clamped.
LEAST_CLAMPED = tl.constexpr(0.9999999e12)

# Magnitudes of a temperature that are accepted (reference.TEMPERATURES).
LEAST_TEMPERATURE, MOST_TEMPERATURE = tl.constexpr(1e-8), tl.constexpr(1e8)
# Most that 2 |s| may be for |s| to be every row's shift: exp(-2 |s|) is then a normal number in float32.
FIXED_SHIFT_LIMIT = tl.constexpr(80.0)

# Which pairs (i, k) of a row and a column count, numbered as in csrc/common/constants.h: all; k != i; those whose ids
# differ; whose ids are equal; whose ids are equal, with k != i; all but the row itself and its partner.
# The operator similarity_lse takes the first four.
ALL, NOT_SELF, IDS_DIFFER, IDS_EQUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
IDS_EQUAL_NOT_SELF, NOT_SELF_NOR_PARTNER = tl.constexpr(4), tl.constexpr(5)

# Which form of the softmax a launch is for. BY_SCALE: both were launched, and the temperature on the device says.
# SIGMOID: no softmax.
FIXED, ONLINE, BY_SCALE, SIGMOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)

NONE, MEAN, SUM = 0, 1, 2  # reductions, as in checks.REDUCTIONS
SUMS_ROWS = 3  # rows of what the operators return as sums: log2 Z_i, r_i, and what rounding took from log2 Z_i

# float16 weights below 6e-8 would be 0: they are stored times this.
HALF_UNIT = tl.constexpr(1024.0)
