// From sums to losses of rows, and what becomes of those: reduction, upstream gradients, statistics.
#pragma once
#include "../../common/constants.h"
#include "tensors.h"

#include <cmath>
#include <limits>
#include <vector>

namespace ssl_fast {

// The loss of a row, in powers of two: log2(1 + 2^x), where x is the log2 of the sum over the row's negatives less the
// positive's score. Exact to the last digits for losses near 0.
inline double softplus2(double x) {
  return x > 0 ? x + std::log1p(std::exp2(-x)) * kLog2E : std::log1p(std::exp2(x)) * kLog2E;
}
// The negatives' share of the row's whole sum: 1 - P(positive), computed without that subtraction.
inline double negatives_share(double x) { return 1 / (1 + std::exp2(-x)); }

// Summed in float64 in the order of the rows: the same bits at any thread count.
template <typename T>
at::Tensor reduce(const std::vector<double>& loss_rows, int64_t reduction) {
  const int64_t n = loss_rows.size();
  if (reduction == kNone) {
    at::Tensor out = new_empty<T>({n});
    std::copy(loss_rows.begin(), loss_rows.end(), out.template data_ptr<T>());
    return out;
  }
  double sum = 0;
  for (double loss : loss_rows) sum += loss;
  at::Tensor out = new_empty<T>({});
  *out.template data_ptr<T>() = T(reduction == kMean ? sum / n : sum);
  return out;
}

// The gradient of each row's loss.
template <typename T>
std::vector<T> row_gradients(const at::Tensor& gradient, int64_t reduction, int64_t n) {
  const at::Tensor g = gradient.to(c10::CppTypeToScalarType<T>::value).contiguous();
  const T* data = g.template data_ptr<T>();
  if (reduction == kNone) return std::vector<T>(data, data + n);
  return std::vector<T>(n, reduction == kMean ? *data / T(n) : *data);
}

// rows.ContrastiveStats: ranks counts the candidates above each positive; similarity sums are
// over all rows, `negatives` the number of negatives of one row.
template <typename T>
at::Tensor contrastive_stats(const std::vector<double>& loss_rows, const std::vector<int64_t>& ranks,
                             double positive_sum, double negative_sum, int64_t negatives) {
  const double n = loss_rows.size();
  double top1 = 0, top5 = 0;
  for (size_t i = 0; i < loss_rows.size(); i++) {
    const double nan_or_zero = loss_rows[i] - loss_rows[i];  // a NaN row has no rank
    top1 += (ranks[i] < 1) + nan_or_zero;
    top5 += (ranks[i] < 5) + nan_or_zero;
  }
  at::Tensor out = new_empty<T>({4});
  T* stats = out.template data_ptr<T>();
  stats[0] = T(top1 / n);
  stats[1] = T(top5 / n);
  stats[2] = T(positive_sum / n);
  stats[3] = negatives ? T(negative_sum / (n * negatives)) : std::numeric_limits<T>::quiet_NaN();
  return out;
}

}  // namespace ssl_fast
