// What SigLIP sums (Zhai et al. 2023, eq. 1): softplus(x_ik) over k != i, with x_ik = s <u_i, v_k> + bias. The
// derivative of softplus is the sigmoid: with W_ik = g_i sigmoid(x_ik)
//   dU_i = s sum_k W_ik v_k,  dV_k = s sum_i W_ik u_i,  dbias = sum_ik W_ik.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "engine/weighted_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// The bias in powers of two. Inf becomes NaN, and the NaN has low bits of zero, as simd/vectors.h needs it.
template <typename T>
T bias_of(const Tensor& bias) {
  const double value = bias.item<double>();
  return std::isnan(value) || std::isinf(value) ? std::numeric_limits<T>::quiet_NaN() : T(value * kLog2E);
}

template <typename T>
struct Problem {
  const UnitRows<T> rows, columns;
  const SymmetricTiles<T> tiles;
  const T bias;
  Problem(const Tensor& a, const Tensor& b, bool normalize, const Scale& scale, const Tensor& bias, const Tensor& kept)
      : rows(a, normalize),
        columns(b, normalize),
        tiles(rows, columns, scale, Mask<T>::of(kNotSelf), KeptPairs<T>::of(kept, rows.n)),
        bias(bias_of<T>(bias)) {}
};

template <typename T>
std::tuple<Tensor, Tensor> forward(const Problem<T>& problem, const Scale& scale, const OptionalTensor& positive) {
  const int64_t n = problem.rows.n;
  const KeptPairs<T>& kept = problem.tiles.kept;
  RankCounts<T> counts(positive, scale, n, true);
  clear_unwritten(problem.tiles);
  const SymmetricTiles<T>& tiles = problem.tiles;
  BlockSums<T> softplus(n, tiles.count(n)), sigmoid(n, tiles.count(n));
  tiles.each_with_block_sums([&](int64_t i, int64_t j) {
    const int64_t r = tiles.first(i), c = tiles.first(j);
    counts.count(tiles, i, j, [&](const Ranks<T>* ranks) {
      kernels<T>().softplus_sums(tiles.tile(i, j), problem.bias, softplus.of(j, r), sigmoid.of(j, r), ranks,
                                 kept.tile(r, c), kept.stride);
    });
  });
  const Tensor sums = new_empty<T>({2, n});
  T* sum = sums.template data_ptr<T>();
  for (int64_t i = 0; i < n; i++) {
    sum[i] = T(softplus.sum(i) * kLn2);
    sum[n + i] = T(sigmoid.sum(i));
  }
  return {sums, counts.tensor(n)};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& a, const Tensor& b,
                                                    const Problem<T>& problem, const Scale& scale,
                                                    const OptionalTensor& scale_tensor, const Tensor& bias,
                                                    const Tensor& sums, bool a_gradient, bool b_gradient) {
  const int64_t n = problem.rows.n, width = problem.rows.width;
  const std::vector<T> g = row_gradients<T>(gradient, kNone, n);
  const bool for_rows = a_gradient || scale_tensor;
  const Tensor du = new_zeros<T>({for_rows ? n : 0, width}), dv = new_zeros<T>({b_gradient ? n : 0, width});
  const std::vector<T> of_columns(n);  // a column has no weight of its own
  add_weighted_rows(problem.tiles, for_rows ? du.template data_ptr<T>() : nullptr,
                    b_gradient ? dv.template data_ptr<T>() : nullptr, g.data(), of_columns.data(),
                    [&](const TileInput<T>& in, int64_t r, int64_t, T* tile) {
                      kernels<T>().sigmoid_weights(in, problem.bias, g.data() + r, tile);
                    });
  const Tensor da = a_gradient ? at::empty(a.sizes(), a.options()) : at::empty({0}, a.options());
  const Tensor db = b_gradient ? at::empty(b.sizes(), b.options()) : at::empty({0}, b.options());
  const double s_dL_ds = for_rows ? rows_backward(problem.rows, du, T(scale.s), da) : 0;
  if (b_gradient) rows_backward(problem.columns, dv, T(scale.s), db);
  const Tensor dbias = new_zeros<double>({});
  for (int64_t i = 0; i < n; i++) *dbias.data_ptr<double>() += double(g[i]) * sums.template data_ptr<T>()[n + i];
  return {da, db, scale_gradient<T>(s_dL_ds, scale, scale_tensor), dbias.to(bias.options())};
}

void check(const Tensor& a, const Tensor& b, const Tensor& bias) {
  check_row_pair("b", b, "a", a);
  TORCH_CHECK_VALUE(bias.dim() == 0, "bias: expected a 0-D tensor, got ", bias.sizes());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> similarity_softplus(const Tensor& a, const Tensor& b, bool normalize,
                                                       double scale_number, const OptionalTensor& scale_tensor,
                                                       const Tensor& bias, const OptionalTensor& positive, bool keep) {
  check(a, b, bias);
  const Scale scale(scale_number, scale_tensor);
  const int64_t n = a.size(0);
  return in_compute_type(a, [&]<typename T>() {
    const Tensor kept = new_empty<T>({keep ? kept_count<T>(n, n, a.size(1)) : 0});
    const auto [sums, ranks] = forward<T>(Problem<T>(a, b, normalize, scale, bias, kept), scale, positive);
    return std::tuple(sums, ranks, kept);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_softplus_backward(
    const Tensor& gradient, const Tensor& a, const Tensor& b, bool normalize, double scale_number,
    const OptionalTensor& scale_tensor, const Tensor& bias, const Tensor& sums, const Tensor& kept, bool a_gradient,
    bool b_gradient) {
  check(a, b, bias);
  check_upstream(gradient, kNone, a.size(0));
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(a, [&]<typename T>() {
    const int64_t n = a.size(0);
    check_saved<T>("sums", sums, {2, n});
    check_saved<T>("kept", kept, {kept.numel() ? kept_count<T>(n, n, a.size(1)) : 0});
    return backward<T>(gradient, a, b, Problem<T>(a, b, normalize, scale, bias, kept), scale, scale_tensor, bias, sums,
                       a_gradient, b_gradient);
  });
}

}  // namespace ssl_fast::cpu
