// What happens to the losses of the rows: reduction, upstream gradients, contrastive accuracy.
#pragma once
#include "unit_rows.h"

#include <cmath>
#include <vector>

namespace ssl_fast {

// As in checks.REDUCTIONS.
enum Reduction { kNone, kMean, kSum };

// What a backward pass is given besides the inputs: the upstream gradient (n) or (), and tensors that
// the forward pass of these inputs has made.
template <typename T>
void check_saved(const char* name, const at::Tensor& x, at::IntArrayRef sizes) {
  TORCH_CHECK_VALUE(x.sizes() == sizes && x.is_contiguous() && x.scalar_type() == c10::CppTypeToScalarType<T>::value,
                    name, ": expected what the forward pass returned, of shape ", sizes, ", got ", x.scalar_type(), " ",
                    x.sizes());
}
inline void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= kNone && reduction <= kSum, "reduction: expected 0, 1 or 2, got ", reduction);
}
inline void check_upstream(const at::Tensor& gradient, int64_t reduction, int64_t n) {
  check_reduction(reduction);
  TORCH_CHECK_VALUE(reduction == kNone ? gradient.dim() == 1 && gradient.size(0) == n : gradient.dim() == 0,
                    "gradient: expected the shape of the loss of ", n, " rows, got ", gradient.sizes());
}

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

// du (n, width), d loss / d (s * u_i) of each row -> the gradient of the rows as given, into out unless that is
// empty; du is overwritten. Returns the sum of <u_i, dU_i>: s dL/ds.
template <typename T>
double rows_backward(const UnitRows<T>& rows, const at::Tensor& du, T s, const at::Tensor& out) {
  std::vector<double> along(rows.n);
  T* first = du.template data_ptr<T>();
  const RowWriter<T> writer(out.numel() ? out : du);
  at::parallel_for(0, rows.n, grain(16. * rows.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* d = first + i * rows.width;
      for (int64_t k = 0; k < rows.dim; k++) d[k] *= s;
      along[i] = rows.backward(i, d);
      if (out.numel()) writer.write(i, d, rows.inverse_norm(i));
    }
  });
  double sum = 0;
  for (const double x : along) sum += x;
  return sum;
}

// d loss / d temperature = -s * (s dL/ds), in the type of the temperature tensor.
template <typename T>
at::Tensor temperature_gradient(double s_dL_ds, const Scale& scale, const std::optional<at::Tensor>& tensor) {
  at::Tensor out = new_empty<T>({});
  *out.template data_ptr<T>() = T(-scale.s * s_dL_ds);
  return tensor ? out.to(tensor->options()) : out;
}

}  // namespace ssl_fast
