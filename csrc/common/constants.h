// Numbers and codes that every layer shares. Python and the Triton kernels hold copies of their own, and a test
// compares them with ssl_fast._C.constants(), which module.cpp makes of these.
#pragma once
#include <cstdint>

namespace ssl_fast {

constexpr double kLn2 = 0.69314718055994531, kLog2E = 1.4426950408889634;

// A row is divided by its norm, but by no less than this.
constexpr double kEps = 1e-12;

// The size of a scale must lie between these: 1e-8 and 1e8, as that of a temperature, each moved outwards by 1e-7 of
// itself, because 1 / temperature is rounded, and so is a temperature in float32.
constexpr double kLeastScale = 0.9999999e-8, kMostScale = 1.0000001e8;

// With the scale s all sums of exp(s <u_i, u_k>) may take the one shift |s| only if 2 |s| is at most this:
// then exp(-2 |s|), the smallest term of a sum, is still a normal float32 number.
constexpr double kFixedShiftLimit = 80;

// Which pairs (i, k) of a row and a column count. The operator similarity_lse takes the first four.
enum MaskCode : int64_t {
  kAll,                // every pair
  kNotSelf,            // k != i
  kIdsDiffer,          // the id of row i differs from the id of column k
  kIdsEqual,           // the ids are equal
  kIdsEqualNotSelf,    // the ids are equal and k != i
  kNotSelfNorPartner,  // k is neither i nor the other view of row i's image
};

// What becomes of the losses of the rows.
enum Reduction : int64_t { kNone, kMean, kSum };

}  // namespace ssl_fast
