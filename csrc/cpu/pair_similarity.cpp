// <u_i, v_i> of the rows that belong together, rounded as the dots of a tile, and its gradient.
#include "../operators/checks.h"
#include "engine/loss_rows.h"
#include "engine/unit_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

template <typename T>
Tensor forward(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  const std::vector<T> similarities = pair_similarities(UnitRows<T>(a, normalize_a), UnitRows<T>(b, normalize_b));
  Tensor out = new_empty<T>({a.size(0)});
  std::copy(similarities.begin(), similarities.end(), out.template data_ptr<T>());
  return out;
}

// The gradient of the rows x, whose unit rows are `unit`: g_i v_i, with v_i the row of `other` that belongs to row i,
// through the normalisation.
template <typename T>
Tensor gradient_of(const Tensor& x, const UnitRows<T>& unit, const UnitRows<T>& other, const std::vector<T>& g) {
  Tensor out = at::empty(x.sizes(), x.options());
  const RowWriter<T> writer(out);
  at::parallel_for(0, unit.n, grain(16. * unit.dim), [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(unit.dim);
    for (int64_t i = begin; i < end; i++) {
      unit.backward(i, g[i], other.row(i), writer, i, scratch.data());
    }
  });
  return out;
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& a, const Tensor& b, bool normalize_a,
                                    bool normalize_b) {
  const UnitRows<T> u(a, normalize_a), v(b, normalize_b);
  const std::vector<T> g = row_gradients<T>(gradient, kNone, u.n);
  return {gradient_of(a, u, v, g), gradient_of(b, v, u, g)};
}

}  // namespace

Tensor pair_similarity(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  check_row_pair("b", b, "a", a);
  return in_compute_type(a, [&]<typename T>() { return forward<T>(a, b, normalize_a, normalize_b); });
}

std::tuple<Tensor, Tensor> pair_similarity_backward(const Tensor& gradient, const Tensor& a, const Tensor& b,
                                                    bool normalize_a, bool normalize_b) {
  check_row_pair("b", b, "a", a);
  check_upstream(gradient, kNone, a.size(0));
  return in_compute_type(a, [&]<typename T>() { return backward<T>(gradient, a, b, normalize_a, normalize_b); });
}

}  // namespace ssl_fast::cpu
