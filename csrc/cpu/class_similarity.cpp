// What SupCon subtracts from a row's log-sum-exp: the sum of <u_i, u_p> over the other rows p with the label of row i.
// With S_c the sum of the class's unit rows it is <u_i, S_c - u_i>, and with T_c the sum of g_p u_p over the class
//   dU_i = g_i (S_c - u_i) + T_c - g_i u_i.
#include "../operators/checks.h"
#include "engine/loss_rows.h"
#include "engine/unit_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// Labels (N) as classes numbered 0, 1, ... in the order of the labels, and how many rows each class has.
struct Classes {
  std::vector<int64_t> of, sizes;
  explicit Classes(const Tensor& labels) : of(int64_values(labels)) {
    std::vector<int64_t> all(of);
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    sizes.resize(all.size());
    for (int64_t& label : of) {
      label = std::lower_bound(all.begin(), all.end(), label) - all.begin();
      sizes[label]++;
    }
  }
};

// The sum of weight_i u_i over each class, (classes, width). Threads share the columns, so that each sum is in the
// order of the rows.
template <typename T, typename Weight>
Tensor class_sums(const UnitRows<T>& unit, const Classes& classes, const Weight& weight) {
  Tensor sums = new_zeros<T>({int64_t(classes.sizes.size()), unit.width});
  T* out = sums.template data_ptr<T>();
  at::parallel_for(0, unit.width, std::max<int64_t>(16, grain(2. * unit.n)), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < unit.n; i++) {
      const T w = weight(i), *row = unit.row(i);
      T* sum = out + classes.of[i] * unit.width;
      for (int64_t d = begin; d < end; d++) sum[d] += w * row[d];
    }
  });
  return sums;
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& labels) {
  const Classes classes(labels);
  const UnitRows<T> unit(x, true);
  const Tensor sums = class_sums(unit, classes, [](int64_t) { return T(1); });
  const T* sum = sums.template data_ptr<T>();
  Tensor similarities = new_empty<T>({unit.n}), positives = at::empty({unit.n}, at::kLong);
  T* out = similarities.template data_ptr<T>();
  at::parallel_for(0, unit.n, grain(8. * unit.dim), [&](int64_t begin, int64_t end) {
    // Dots of several rows are computed together, one in each lane.
    const int64_t group = kernels<T>().lanes;
    std::vector<T> others(group * unit.width);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      for (int64_t i = first; i < first + count; i++) {
        const T *class_sum = sum + classes.of[i] * unit.width, *u = unit.row(i);
        T* other = others.data() + (i - first) * unit.width;
        for (int64_t d = 0; d < unit.dim; d++) other[d] = class_sum[d] - u[d];
        positives.data_ptr<int64_t>()[i] = classes.sizes[classes.of[i]] - 1;
      }
      kernels<T>().dots(unit.row(first), others.data(), unit.width, count, unit.dim, out + first);
    }
  });
  return {similarities, positives};
}

template <typename T>
Tensor backward(const Tensor& gradient, const Tensor& x, const Tensor& labels) {
  const Classes classes(labels);
  const UnitRows<T> unit(x, true);
  const std::vector<T> g = row_gradients<T>(gradient, kNone, unit.n);
  const Tensor sums = class_sums(unit, classes, [](int64_t) { return T(1); });
  const Tensor weighted = class_sums(unit, classes, [&](int64_t i) { return g[i]; });
  const T *sum = sums.template data_ptr<T>(), *weighted_sum = weighted.template data_ptr<T>();
  Tensor out = at::empty(x.sizes(), x.options());
  const RowWriter<T> writer(out);
  at::parallel_for(0, unit.n, grain(24. * unit.dim), [&](int64_t begin, int64_t end) {
    std::vector<T> du(unit.width);
    for (int64_t i = begin; i < end; i++) {
      const int64_t place = classes.of[i] * unit.width;
      const T* u = unit.row(i);
      for (int64_t d = 0; d < unit.dim; d++)
        du[d] = g[i] * (sum[place + d] - u[d]) + (weighted_sum[place + d] - g[i] * u[d]);
      unit.backward(i, T(1), du.data(), writer, i, du.data());
    }
  });
  return out;
}

void check(const Tensor& x, const Tensor& labels) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.numel() > 0, "x: expected the shape (N, D), not empty, got ", x.sizes());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == x.size(0) && labels.scalar_type() == at::kLong,
                    "labels: expected int64 of ", x.size(0), " rows, got ", labels.scalar_type(), " ", labels.sizes());
}

}  // namespace

std::tuple<Tensor, Tensor> class_similarity(const Tensor& x, const Tensor& labels) {
  check(x, labels);
  return in_compute_type(x, [&]<typename T>() { return forward<T>(x, labels); });
}

Tensor class_similarity_backward(const Tensor& gradient, const Tensor& x, const Tensor& labels) {
  check(x, labels);
  check_upstream(gradient, kNone, x.size(0));
  return in_compute_type(x, [&]<typename T>() { return backward<T>(gradient, x, labels); });
}

}  // namespace ssl_fast::cpu
