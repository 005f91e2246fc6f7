"""Numbers and codes that several parts share, written once. csrc/common/constants.h has those of the CPU engine."""

import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# A row is divided by its norm, or by EPS where its norm is smaller.
EPS = tl.constexpr(1e-12)
# An inverse norm of at least this says that the row's norm was smaller than EPS. It lies a little below 1 / EPS because
# inverse norms are rounded to float32.
LEAST_CLAMPED_INVERSE = tl.constexpr(0.9999999e12)

# A scale is accepted if its magnitude lies between these: 1e-8 and 1e8, moved outwards by what rounding may do to
# 1 / temperature.
LEAST_SCALE, MOST_SCALE = tl.constexpr(0.9999999e-8), tl.constexpr(1.0000001e8)
# All rows are shifted by the same |s| as long as 2 |s| is at most this: exp(-2 |s|), the smallest exponential of unit
# rows, is then a normal number in float32.
FIXED_SHIFT_LIMIT = tl.constexpr(80.0)

# Codes of masks: which pairs of a row i and a column k count. The numbers are those of csrc/common/constants.h.
ALL = tl.constexpr(0)
NOT_SELF = tl.constexpr(1)  # k != i
IDS_DIFFER = tl.constexpr(2)  # the id of k is not that of i
IDS_EQUAL = tl.constexpr(3)  # the id of k is that of i
IDS_EQUAL_NOT_SELF = tl.constexpr(4)  # the id of k is that of i, and k != i
NOT_SELF_NOR_PARTNER = tl.constexpr(5)  # k != i, and k is not the partner of i, which lies half a batch away

# Codes of the form of the softmax. A kernel's HOST_FORM is what the host knows of it; where that is BY_SCALE, the
# kernel reads the scale and decides.
FIXED = tl.constexpr(0)  # the shift |s| for all rows
ONLINE = tl.constexpr(1)  # a running maximum
BY_SCALE = tl.constexpr(2)  # both forms are launched, and the one that the scale on the device rules out returns
SIGMOID = tl.constexpr(3)  # sigmoids in place of a softmax

# Codes of the reduction of a loss.
NONE, MEAN, SUM = 0, 1, 2

# Rows of the `sums` (3, n) that the losses return and their backward passes take, of n loss rows.
SUMS_ROWS = 3
LOG_SUM = tl.constexpr(0)  # log2 Z_i, rounded to the dtype of sums
SHARE = tl.constexpr(1)  # r_i, the negatives' share of Z_i
# log2 Z_i less the rounded number. At |s| = 1000 rounding to float32 would change every weight by 1e-4.
REST = tl.constexpr(2)

# float16 weights below 6e-8 would be rounded to 0, so weights in float16 are multiplied by this.
HALF_UNIT = tl.constexpr(1024.0)
