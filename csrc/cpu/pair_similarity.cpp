// <u_i, v_i> of the rows that belong together, rounded as the dots of a tile, and its gradient.
#include "operators.h"
#include "engine/loss_rows.h"

namespace ssl_fast::cpu {
namespace {

void check_pairs(const Tensor& a, const Tensor& b) {
  TORCH_CHECK_VALUE(a.dim() == 2 && a.sizes() == b.sizes() && a.numel() > 0,
                    "b: expected the shape (N, D) of a, not empty, got ", a.sizes(), " and ", b.sizes());
}

template <typename T>
Tensor forward(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  const std::vector<T> similarities = pair_similarities(UnitRows<T>(a, normalize_a), UnitRows<T>(b, normalize_b));
  Tensor out = new_empty<T>({a.size(0)});
  std::copy(similarities.begin(), similarities.end(), out.template data_ptr<T>());
  return out;
}

// The gradient of the rows of `own`: g_i v_i, through the normalisation.
template <typename T>
Tensor side(const Tensor& of, const UnitRows<T>& own, const UnitRows<T>& other, const std::vector<T>& g) {
  Tensor out = at::empty(of.sizes(), of.options());
  const RowWriter<T> writer(out);
  at::parallel_for(0, own.n, grain(16. * own.dim), [&](int64_t begin, int64_t end) {
    std::vector<T> row(own.dim);
    for (int64_t i = begin; i < end; i++) {
      for (int64_t d = 0; d < own.dim; d++) row[d] = g[i] * other.row(i)[d];
      own.backward(i, row.data());
      writer.write(i, row.data(), own.inverse_norm(i));
    }
  });
  return out;
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& a, const Tensor& b, bool normalize_a,
                                    bool normalize_b) {
  const UnitRows<T> u(a, normalize_a), v(b, normalize_b);
  const std::vector<T> g = row_gradients<T>(gradient, kNone, u.n);
  return {side(a, u, v, g), side(b, v, u, g)};
}

}  // namespace

Tensor pair_similarity(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  check_pairs(a, b);
  return a.scalar_type() == at::kDouble ? forward<double>(a, b, normalize_a, normalize_b)
                                        : forward<float>(a, b, normalize_a, normalize_b);
}

std::tuple<Tensor, Tensor> pair_similarity_backward(const Tensor& gradient, const Tensor& a, const Tensor& b,
                                                    bool normalize_a, bool normalize_b) {
  check_pairs(a, b);
  check_upstream(gradient, kNone, a.size(0));
  return a.scalar_type() == at::kDouble ? backward<double>(gradient, a, b, normalize_a, normalize_b)
                                        : backward<float>(gradient, a, b, normalize_a, normalize_b);
}

}  // namespace ssl_fast::cpu
