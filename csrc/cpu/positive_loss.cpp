// The losses of rows from the log-sum-exps over their negatives and the similarities of their positives. It is one
// operator, because ten small operations of PyTorch forward, and as many backward, cost more than a small batch's
// tiles.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// x_i = lse_i - s w_k p_k for row i of lse (count), with k = i mod positives the row's positive.
template <typename T>
class PositiveRows {
 public:
  PositiveRows(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, const Scale& scale)
      : count(lse.size(0)),
        positives(positive.size(0)),
        // Rounded in powers of two as in the tiles, so that equal scores in lse and here cancel exactly.
        scale_(double(T(scale.log2_scale)) * kLn2),
        lse_(lse.contiguous()),
        positive_(positive.contiguous()),
        weights_(weights ? weights->to(positive.scalar_type()).contiguous() : Tensor()),
        lse_data_(lse_.template data_ptr<double>()),
        positive_data_(positive_.template data_ptr<T>()),
        weight_data_(weights ? weights_.template data_ptr<T>() : nullptr) {}

  double weighted(int64_t i) const {
    const int64_t k = i % positives;
    return weight_data_ ? T(weight_data_[k] * positive_data_[k]) : positive_data_[k];
  }
  double weight(int64_t i) const { return weight_data_ ? weight_data_[i % positives] : 1; }
  double x(int64_t i) const { return lse_data_[i] - scale_ * weighted(i); }
  double scale() const { return scale_; }

  const int64_t count, positives;

 private:
  const double scale_;
  const Tensor lse_, positive_, weights_;
  const double* lse_data_;
  const T *positive_data_, *weight_data_;
};

// log(1 + exp(x)) as the Python reference computes it, and its derivative.
double softplus(double x) { return x > 50 ? x : std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <typename T>
Tensor forward(const PositiveRows<T>& rows, bool in_denominator, int64_t reduction) {
  std::vector<double> losses(rows.count);
  at::parallel_for(0, rows.count, grain(100), [&](int64_t begin, int64_t end) {
    // Each loss is rounded to T before the sum, so that the sum is that of the losses which reduction none returns.
    for (int64_t i = begin; i < end; i++) losses[i] = T(in_denominator ? softplus(rows.x(i)) : rows.x(i));
  });
  return reduce<T>(losses, reduction);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const PositiveRows<T>& rows, bool in_denominator,
                                            const Scale& scale, const OptionalTensor& scale_tensor, int64_t reduction) {
  const std::vector<T> g = row_gradients<T>(gradient, reduction, rows.count);
  const Tensor to_lse = new_empty<double>({rows.count}), to_positive = new_empty<T>({rows.positives});
  double* dlse = to_lse.template data_ptr<double>();
  T* dpositive = to_positive.template data_ptr<T>();
  at::parallel_for(0, rows.count, grain(100), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) dlse[i] = in_denominator ? g[i] * sigmoid(rows.x(i)) : double(g[i]);
  });
  double s_dL_ds = 0;
  for (int64_t k = 0; k < rows.positives; k++) {
    double sum = 0;
    for (int64_t i = k; i < rows.count; i += rows.positives) sum += dlse[i];
    dpositive[k] = T(-sum * rows.scale() * rows.weight(k));
    s_dL_ds -= sum * rows.scale() * rows.weighted(k);
  }
  return {to_lse, to_positive, scale_gradient<T>(s_dL_ds, scale, scale_tensor)};
}

void check(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, int64_t reduction) {
  check_reduction(reduction);
  TORCH_CHECK_VALUE(positive.dim() == 1 && positive.numel() > 0, "positive: expected the shape (N), not empty, got ",
                    positive.sizes());
  TORCH_CHECK_TYPE(positive.scalar_type() == at::kFloat || positive.scalar_type() == at::kDouble,
                   "positive: expected float32 or float64, got ", positive.scalar_type());
  TORCH_CHECK_VALUE(
      lse.dim() == 1 && lse.numel() > 0 && lse.size(0) % positive.size(0) == 0 && lse.scalar_type() == at::kDouble,
      "lse: expected float64 of a multiple of ", positive.size(0), " rows, got ", lse.scalar_type(), " ", lse.sizes());
  TORCH_CHECK_VALUE(!weights || weights->sizes() == positive.sizes(), "weights: expected the shape ", positive.sizes(),
                    ", got ", weights ? weights->sizes() : positive.sizes());
}

}  // namespace

Tensor positive_loss(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, bool in_denominator,
                     double scale_number, const OptionalTensor& scale_tensor, int64_t reduction) {
  check(lse, positive, weights, reduction);
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(positive, [&]<typename T>() {
    return forward(PositiveRows<T>(lse, positive, weights, scale), in_denominator, reduction);
  });
}

std::tuple<Tensor, Tensor, Tensor> positive_loss_backward(const Tensor& gradient, const Tensor& lse,
                                                          const Tensor& positive, const OptionalTensor& weights,
                                                          bool in_denominator, double scale_number,
                                                          const OptionalTensor& scale_tensor, int64_t reduction) {
  check(lse, positive, weights, reduction);
  check_upstream(gradient, reduction, lse.size(0));
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(positive, [&]<typename T>() {
    const PositiveRows<T> rows(lse, positive, weights, scale);
    return backward(gradient, rows, in_denominator, scale, scale_tensor, reduction);
  });
}

}  // namespace ssl_fast::cpu
