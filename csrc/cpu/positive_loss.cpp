// The losses of rows from the log-sum-exps over their negatives and the similarities of their positives. It is one
// operator, because ten small operations of PyTorch forward, and as many backward, cost more than a small batch's
// tiles.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// x_i = lse_i - A_k for row i of lse (count), with k = i mod positives the row's positive. Its logit is A_k = s w_k
// p_k; of several positives, l_kp = s p_kp, it is A_k = log sum_p exp(l_kp).
template <typename T>
class PositiveRows {
 public:
  PositiveRows(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, const Scale& scale)
      : count(lse.size(0)),
        positives(positive.size(0)),
        each(positive.dim() == 2 ? positive.size(1) : 1),
        // Rounded in powers of two as in the tiles, so that equal scores in lse and here cancel exactly.
        scale_(double(T(scale.log2_scale)) * kLn2),
        lse_(lse.contiguous()),
        positive_(positive.contiguous()),
        weights_(weights ? weights->to(positive.scalar_type()).contiguous() : Tensor()),
        lse_data_(lse_.template data_ptr<double>()),
        positive_data_(positive_.template data_ptr<T>()),
        weight_data_(weights ? weights_.template data_ptr<T>() : nullptr),
        of_all_(each > 1 ? positives : 0) {
    for (size_t k = 0; k < of_all_.size(); k++) of_all_[k] = log_sum_exp(k);
  }

  double weight(int64_t k) const { return weight_data_ ? weight_data_[k] : 1; }
  // l_kp.
  double logit(int64_t k, int64_t p) const {
    const T similarity = positive_data_[k * each + p];
    return scale_ * (weight_data_ ? T(weight_data_[k] * similarity) : similarity);
  }
  double of_all(int64_t k) const { return each > 1 ? of_all_[k] : logit(k, 0); }
  double x(int64_t i) const { return lse_data_[i] - of_all(i % positives); }
  double mean_logit(int64_t k) const {
    double sum = 0;
    for (int64_t p = 0; p < each; p++) sum += logit(k, p);
    return sum / each;
  }
  double scale() const { return scale_; }

  const int64_t count, positives, each;  // rows of lse, groups of positives, positives of a group

 private:
  double log_sum_exp(int64_t k) const {
    double highest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t p = 0; p < each; p++) highest = std::max(highest, logit(k, p));
    for (int64_t p = 0; p < each; p++) sum += std::exp(logit(k, p) - highest);
    return highest + std::log(sum);
  }

  const double scale_;
  const Tensor lse_, positive_, weights_;
  const double* lse_data_;
  const T *positive_data_, *weight_data_;
  std::vector<double> of_all_;
};

// log(1 + exp(x)) as the Python reference computes it, and its derivative.
double softplus(double x) { return x > 50 ? x : std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <typename T>
Tensor forward(const PositiveRows<T>& rows, bool in_denominator, bool mean_in_log, int64_t reduction) {
  std::vector<double> losses(rows.count);
  at::parallel_for(0, rows.count, grain(100. * rows.each), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t k = i % rows.positives;
      double loss = in_denominator ? softplus(rows.x(i)) : rows.x(i);
      if (rows.each > 1) loss += mean_in_log ? std::log(double(rows.each)) : rows.of_all(k) - rows.mean_logit(k);
      // Each loss is rounded to T before the sum, so that the sum is that of the losses which reduction none returns.
      losses[i] = T(loss);
    }
  });
  return reduce<T>(losses, reduction);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const PositiveRows<T>& rows, const Tensor& positive,
                                            bool in_denominator, bool mean_in_log, const Scale& scale,
                                            const OptionalTensor& scale_tensor, int64_t reduction) {
  const std::vector<T> g = row_gradients<T>(gradient, reduction, rows.count);
  const Tensor to_lse = new_empty<double>({rows.count}), to_positive = new_empty<T>(positive.sizes());
  double* dlse = to_lse.template data_ptr<double>();
  T* dpositive = to_positive.template data_ptr<T>();
  at::parallel_for(0, rows.count, grain(100), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) dlse[i] = in_denominator ? g[i] * sigmoid(rows.x(i)) : double(g[i]);
  });
  double s_dL_ds = 0;
  for (int64_t k = 0; k < rows.positives; k++) {
    double to_of_all = 0, upstream = 0;
    for (int64_t i = k; i < rows.count; i += rows.positives) to_of_all -= dlse[i], upstream += g[i];
    for (int64_t p = 0; p < rows.each; p++) {
      const double l = rows.logit(k, p), share = rows.each > 1 ? std::exp(l - rows.of_all(k)) : 1;
      double to_logit = to_of_all * share;
      if (!mean_in_log) to_logit += upstream * (share - 1. / rows.each);
      dpositive[k * rows.each + p] = T(to_logit * rows.scale() * rows.weight(k));
      s_dL_ds += to_logit * l;
    }
  }
  return {to_lse, to_positive, scale_gradient<T>(s_dL_ds, scale, scale_tensor)};
}

void check(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, int64_t reduction) {
  check_reduction(reduction);
  TORCH_CHECK_VALUE((positive.dim() == 1 || positive.dim() == 2) && positive.numel() > 0,
                    "positive: expected the shape (N) or (N, P), not empty, got ", positive.sizes());
  TORCH_CHECK_TYPE(positive.scalar_type() == at::kFloat || positive.scalar_type() == at::kDouble,
                   "positive: expected float32 or float64, got ", positive.scalar_type());
  TORCH_CHECK_VALUE(
      lse.dim() == 1 && lse.numel() > 0 && lse.size(0) % positive.size(0) == 0 && lse.scalar_type() == at::kDouble,
      "lse: expected float64 of a multiple of ", positive.size(0), " rows, got ", lse.scalar_type(), " ", lse.sizes());
  TORCH_CHECK_VALUE(!weights || (positive.dim() == 1 && weights->sizes() == positive.sizes()),
                    "weights: expected the shape of one positive a row, (", positive.size(0), "), got ",
                    weights ? weights->sizes() : positive.sizes());
}

}  // namespace

Tensor positive_loss(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, bool in_denominator,
                     bool mean_in_log, double scale_number, const OptionalTensor& scale_tensor, int64_t reduction) {
  check(lse, positive, weights, reduction);
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(positive, [&]<typename T>() {
    return forward(PositiveRows<T>(lse, positive, weights, scale), in_denominator, mean_in_log, reduction);
  });
}

std::tuple<Tensor, Tensor, Tensor> positive_loss_backward(const Tensor& gradient, const Tensor& lse,
                                                          const Tensor& positive, const OptionalTensor& weights,
                                                          bool in_denominator, bool mean_in_log, double scale_number,
                                                          const OptionalTensor& scale_tensor, int64_t reduction) {
  check(lse, positive, weights, reduction);
  check_upstream(gradient, reduction, lse.size(0));
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(positive, [&]<typename T>() {
    const PositiveRows<T> rows(lse, positive, weights, scale);
    return backward(gradient, rows, positive, in_denominator, mean_in_log, scale, scale_tensor, reduction);
  });
}

}  // namespace ssl_fast::cpu
