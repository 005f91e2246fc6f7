// The scale of scores in powers of two, and whether one shift serves all sums.
#pragma once
#include "../../common/constants.h"

#include <cmath>
#include <limits>
#include <optional>

#include <ATen/core/Tensor.h>

namespace ssl_fast {

// The scale s = 1 / temperature. Scores are in powers of two, log2_scale * <u_i, u_k> = s * log2(e) * <u_i, u_k>, so
// that exp2 needs no further product.
struct Scale {
  double s, log2_scale;

  // Outside the range s is NaN. Python checks numbers, but not the value of a tensor.
  explicit Scale(double number)
      : s(std::abs(number) >= kLeastScale && std::abs(number) <= kMostScale ? number
                                                                            : std::numeric_limits<double>::quiet_NaN()),
        log2_scale(s * kLog2E) {}
  // tensor: 0-D; where it is given, number is not used.
  Scale(double number, const std::optional<at::Tensor>& tensor) : Scale(tensor ? tensor->item<double>() : number) {}

  // Whether all sums may take the fixed shift |s| instead of a running maximum. normalized: whether all rows
  // were normalised; of rows that are taken as they are, a score may be above |s|.
  bool allows_fixed_shift(bool normalized) const { return normalized && 2 * std::abs(s) <= kFixedShiftLimit; }

  double sign() const { return s < 0 ? -1 : 1; }
};

}  // namespace ssl_fast
