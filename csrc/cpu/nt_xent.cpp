// NT-Xent with the fixed shift |s|: E_ik = exp(s <u_i, u_k> - |s|) is symmetric, so each pair of blocks is computed
// once and serves the rows of both. The mask excludes row i itself and its partner p(i), the same image in the other
// view. With R_i the sum over the negatives and Z_i = R_i + E_ip(i), the loss of row i is log(1 + R_i / E_ip(i)), which
// is exact near 0 too, and with a_i = g_i / Z_i and r_i = R_i / Z_i
//   dU_i = s [ sum_{negatives k} E_ik (a_i + a_k) u_k - (g_i r_i + g_p(i) r_p(i)) u_p(i) ].
// Where exp(-2|s|) would be no normal number, the running maximum of engine/online_softmax.h takes over.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "engine/weighted_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// The rows of the first view are 0 .. n / 2, those of the second follow in the same order.
inline int64_t partner(int64_t i, int64_t n) { return i < n / 2 ? i + n / 2 : i - n / 2; }
template <typename T>
Mask<T> negatives_of(const UnitRows<T>& rows) {
  return Mask<T>::of(kNotSelfNorPartner, rows.n / 2);
}

template <typename T>
UnitRows<T> both_views(const Tensor& z1, const Tensor& z2) {
  UnitRows<T> rows(2 * z1.size(0), z1.size(1));
  rows.fill(z1, 0);
  rows.fill(z2, z1.size(0));
  return rows;
}

// The sum of <u_i, u_k> over all i and all k other than i and p(i), in O(N D): of the square of the sum of all rows,
// less the terms that do not count.
template <typename T>
double negative_similarity_sum(const UnitRows<T>& rows, double positive_sum) {
  std::vector<double> total(rows.dim);
  double all = 0, itself = 0;
  for (int64_t i = 0; i < rows.n; i++) {
    const T* u = rows.row(i);
    for (int64_t d = 0; d < rows.dim; d++) {
      total[d] += u[d];
      itself += double(u[d]) * u[d];
    }
  }
  for (double x : total) all += x * x;
  return all - itself - positive_sum;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z1, const Tensor& z2, const Scale& scale, int64_t reduction,
                                           bool return_stats, bool keep) {
  const UnitRows<T> rows = both_views<T>(z1, z2);
  const int64_t n = rows.n;
  const std::vector<T> similarities = pair_similarities(rows, rows, n / 2);
  RankCounts<T> counts;
  if (return_stats) {
    counts.of_rows.resize(n);
    for (int64_t i = 0; i < n; i++) counts.positives.push_back(T(scale.sign()) * similarities[i % (n / 2)]);
  }
  const Tensor sums = new_sums<T>(n, keep ? kept_count<T>(n, n, rows.dim) : 0);  // log2 Z_i, then r_i
  const std::vector<double> log_sums =
      symmetric_log_sums(rows, scale, negatives_of(rows), KeptPairs<T>(sums, n, n), counts);
  std::vector<double> loss_rows(n);
  T* sum = sums.template data_ptr<T>();
  double positive_sum = 0;
  for (int64_t i = 0; i < n; i++) {
    const double similarity = similarities[i % (n / 2)];
    // The scale is rounded to T as in the tiles, so that the scores of equal rows are equal and cancel exactly.
    const double score = T(scale.log2_scale) * similarity, x = log_sums[i] - score;
    loss_rows[i] = softplus2(x) * kLn2;
    sum[i] = T(score + softplus2(x));
    sum[n + i] = T(negatives_share(x));
    positive_sum += similarity;
  }
  Tensor stats = return_stats ? contrastive_stats<T>(loss_rows, counts.of_rows, positive_sum,
                                                     negative_similarity_sum(rows, positive_sum), n - 2)
                              : new_empty<T>({0});
  return {reduce<T>(loss_rows, reduction), stats, sums};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& z1, const Tensor& z2,
                                            const Scale& scale, const OptionalTensor& scale_tensor, int64_t reduction,
                                            const Tensor& sums) {
  check_upstream(gradient, reduction, 2 * z1.size(0));
  check_sums<T>(sums, 2 * z1.size(0), kept_count<T>(2 * z1.size(0), 2 * z1.size(0), z1.size(1)));
  const UnitRows<T> rows = both_views<T>(z1, z2);
  const int64_t n = rows.n;
  const std::vector<T> g = row_gradients<T>(gradient, reduction, n);
  const T* sum = sums.template data_ptr<T>();
  Tensor du = new_zeros<T>({n, rows.width});
  T* du_rows = du.template data_ptr<T>();
  const T g_unit =
      add_symmetric_weighted_rows(rows, scale, negatives_of(rows), KeptPairs<T>(sums, n, n), g, sum, du_rows);
  const std::array<Tensor, 2> dz = {at::empty(z1.sizes(), z1.options()), at::empty(z2.sizes(), z2.options())};
  const std::array<RowWriter<T>, 2> writers = {RowWriter<T>(dz[0]), RowWriter<T>(dz[1])};
  std::vector<double> along(n);
  at::parallel_for(0, n, grain(16. * rows.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* d = du_rows + i * rows.width;
      const int64_t p = partner(i, n);
      const T s = T(scale.s), pull = g[i] * sum[n + i] + g[p] * sum[n + p];
      const T* u = rows.row(p);
      for (int64_t k = 0; k < rows.dim; k++) d[k] = d[k] * g_unit - pull * u[k];
      along[i] = rows.backward(i, s, d, writers[i >= n / 2], i % (n / 2), d);
    }
  });
  double s_dL_ds = 0;
  for (double x : along) s_dL_ds += x / 2;
  return {dz[0], dz[1], scale_gradient<T>(s_dL_ds, scale, scale_tensor)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& z1, const Tensor& z2, double scale_number,
                                           const OptionalTensor& scale_tensor, int64_t reduction, bool return_stats,
                                           bool keep) {
  check_row_pair("z2", z2, "z1", z1);
  check_reduction(reduction);
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(z1, [&]<typename T>() { return forward<T>(z1, z2, scale, reduction, return_stats, keep); });
}

std::tuple<Tensor, Tensor, Tensor> nt_xent_backward(const Tensor& gradient, const Tensor& z1, const Tensor& z2,
                                                    double scale_number, const OptionalTensor& scale_tensor,
                                                    int64_t reduction, const Tensor& sums) {
  check_row_pair("z2", z2, "z1", z1);
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(
      z1, [&]<typename T>() { return backward<T>(gradient, z1, z2, scale, scale_tensor, reduction, sums); });
}

}  // namespace ssl_fast::cpu
