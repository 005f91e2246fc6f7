// InfoNCE in one pass over the negatives with a running maximum, or in the batch, where all pairs can be kept, with the
// fixed shift. With P_ij the softmax of query i over its positive k_i and its negatives n_j, and V_i = sum_j P_ij n_j
// (`key_means`), which the forward pass keeps:
//   dq_i = s g_i [ V_i - r_i k_i ],  dk_i = -s g_i r_i q_i,  dn_j = s sum_i g_i P_ij q_i,
// where r_i = 1 - P_i+ is computed from the sum over the negatives, not by that subtraction. In batch the negatives are
// the other positives, and dk_i is the sum of both.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "engine/weighted_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// The queries, their positives and their negatives, which in batch are the other positives.
template <typename T>
struct Problem {
  UnitRows<T> query, positive;
  const bool in_batch;
  std::vector<T> similarities;  // <q_i, k_i>
  const QueryKeyTiles<T> tiles;

  // A backward pass that computes no gradient of the negatives is not given them: its tiles have no keys.
  Problem(const Tensor& q, const Tensor& k, const OptionalTensor& negatives, bool in_batch, bool normalize_negatives,
          const Scale& scale)
      : query(q, true),
        positive(k, true),
        in_batch(in_batch),
        similarities(pair_similarities(query, positive)),
        // In batch the positive of query i is key i, which is not among its negatives.
        tiles(query,
              in_batch    ? k
              : negatives ? *negatives
                          : Tensor(),
              in_batch || normalize_negatives, scale, Mask<T>::of(in_batch ? kNotSelf : kAll)) {}
  Problem(const Problem&) = delete;  // `tiles` refers to `query`

  // Whether all pairs are computed with the fixed shift, and kept for the backward pass. By the shapes and the scale
  // alone: a loss with a graph has the same bits as one without.
  bool fixed_shift() const {
    return in_batch && tiles.scale.allows_fixed_shift(true) && kept_count<T>(n(), n(), dim());
  }
  SymmetricTiles<T> pairs(const Tensor& sums) const {
    return {query, positive, tiles.scale, tiles.mask, KeptPairs<T>(sums, n(), n())};
  }

  int64_t n() const { return query.n; }
  int64_t dim() const { return query.dim; }
};

// The sum of <q_i, n_j> over all queries and their negatives, in O(K D).
template <typename T>
double negative_similarity_sum(const Problem<T>& problem, double positive_sum) {
  const int64_t dim = problem.dim();
  const QueryKeyTiles<T>& tiles = problem.tiles;
  const Tensor scratch = Keys<T>::scratch(problem.query.width);
  std::vector<double> query_sum(dim);
  double sum = 0;
  for (int64_t group = 0; group < tiles.groups(); group++) {
    std::fill(query_sum.begin(), query_sum.end(), 0);
    for (int64_t i = group; i < (tiles.paired ? group + 1 : tiles.n()); i++)
      std::transform(query_sum.begin(), query_sum.end(), problem.query.row(i), query_sum.begin(), std::plus<>());
    const Keys<T> keys = tiles.keys(group);
    for (int64_t first = 0; first < keys.count; first += kTile) {
      const int64_t count = std::min(kTile, keys.count - first);
      const auto block = keys.block(first, count, scratch.template data_ptr<T>());
      for (int64_t j = 0; j < count; j++)
        for (int64_t d = 0; d < dim; d++) sum += query_sum[d] * block.rows[j * block.stride + d];
    }
  }
  return problem.in_batch ? sum - positive_sum : sum;
}

// Sums over the other positives with the fixed shift; as PartialSums, which have a running maximum.
template <typename T>
struct FixedShiftSums {
  const SymmetricTiles<T> tiles;
  RankCounts<T> counts;
  std::vector<double> log_sums;
  const Tensor weighted;  // (n, width): sums of E * key; empty unless asked for

  FixedShiftSums(const Problem<T>& problem, const Tensor& saved, bool with_weighted, const std::vector<T>& thresholds)
      : tiles(problem.pairs(saved)), weighted(new_zeros<T>({with_weighted ? problem.n() : 0, problem.query.width})) {
    counts.positives = thresholds;
    counts.of_rows.resize(thresholds.size());
    log_sums = fixed_shift_log_sums(tiles, false, counts);
    const std::vector<T> ones(problem.n(), 1), zeros(problem.n());
    if (with_weighted)
      add_exp_weighted_rows<T>(tiles, weighted.template data_ptr<T>(), nullptr, ones.data(), zeros.data());
  }

  double log_sum(int64_t i) const { return log_sums[i]; }
  int64_t rank(int64_t i) const { return counts.of_rows[i]; }
  void mean(int64_t i, double whole, T* out, int64_t dim) const {
    const T factor = T(std::exp2(tiles.shift - whole));
    const T* row = weighted.template data_ptr<T>() + i * weighted.size(1);
    for (int64_t d = 0; d < dim; d++) out[d] = factor * row[d];
  }
};

// The results of the operator, from sums over the negatives of each query.
template <typename T, typename Sums>
std::tuple<Tensor, Tensor, Tensor, Tensor> results(const Problem<T>& problem, const Sums& partial, const Tensor& sums,
                                                   int64_t reduction, bool return_stats, bool query_gradient) {
  const int64_t n = problem.n(), dim = problem.dim();
  const T sign = problem.tiles.sign, magnitude = problem.tiles.magnitude;
  Tensor key_means = new_empty<T>({query_gradient ? n : 0, dim});
  T* log_sums = sums.template data_ptr<T>();
  T* means = key_means.template data_ptr<T>();
  std::vector<double> loss_rows(n);
  at::parallel_for(0, n, grain(20. * dim + 200), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const double score = double(problem.similarities[i]) * sign * magnitude;
      const double x = partial.log_sum(i) - score;
      const double whole = score + softplus2(x);
      loss_rows[i] = softplus2(x) * kLn2;
      log_sums[i] = T(whole);
      log_sums[n + i] = T(negatives_share(x));
      if (query_gradient) partial.mean(i, whole, means + i * dim, dim);
    }
  });
  Tensor stats = new_empty<T>({0});
  if (return_stats) {
    std::vector<int64_t> ranks(n);
    double positive_sum = 0;
    for (int64_t i = 0; i < n; i++) {
      ranks[i] = partial.rank(i);
      positive_sum += problem.similarities[i];
    }
    stats = contrastive_stats<T>(loss_rows, ranks, positive_sum, negative_similarity_sum(problem, positive_sum),
                                 problem.tiles.key_count() - problem.in_batch);
  }
  return {reduce<T>(loss_rows, reduction), stats, sums, key_means};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Problem<T>& problem, int64_t reduction, bool return_stats,
                                                   bool query_gradient, bool keep) {
  const int64_t n = problem.n();
  std::vector<T> thresholds(return_stats ? n : 0);
  for (size_t i = 0; i < thresholds.size(); i++) thresholds[i] = problem.similarities[i] * problem.tiles.sign;
  const Tensor sums =
      new_sums<T>(n, keep && problem.in_batch ? kept_count<T>(n, n, problem.dim()) : 0, problem.fixed_shift());
  if (problem.fixed_shift())
    return results(problem, FixedShiftSums<T>(problem, sums, query_gradient, thresholds), sums, reduction, return_stats,
                   query_gradient);
  return results(problem, PartialSums<T>(problem.tiles, query_gradient, thresholds), sums, reduction, return_stats,
                 query_gradient);
}

// Writes dn_j of all negatives to `out`. In batch key j is the positive of query j too, and dk_j is added.
template <typename T>
void negatives_backward(const Problem<T>& problem, const std::vector<T>& g, const Tensor& sums, const Tensor& out) {
  const int64_t n = problem.n();
  const T *log_sums = sums.template data_ptr<T>(), *rest = log_sums + n;
  // Adds what key j gets as the positive of query j, in units of `unit`.
  const auto add_positive = [&](int64_t j, T* sum, T unit) {
    const T pull = g[j] * rest[j];
    const T* q = problem.query.row(j);
    for (int64_t d = 0; d < problem.dim(); d++) sum[d] = sum[d] * unit - pull * q[d];
  };
  if (!problem.fixed_shift()) {
    keys_backward<T>(problem.tiles, {log_sums, g.data()}, out, [&](int64_t j, T* sum) {
      if (problem.in_batch) add_positive(j, sum, 1);
    });
    return;
  }
  const SymmetricTiles<T> pairs = problem.pairs(sums);
  const T unit = gradient_unit(g);
  const std::vector<T> weights = fixed_shift_weights(pairs, g.data(), unit, log_sums, n), zeros(n);
  const Tensor dk = new_zeros<T>({n, problem.positive.width});
  add_exp_weighted_rows<T>(pairs, nullptr, dk.template data_ptr<T>(), weights.data(), zeros.data());
  rows_backward(problem.positive, dk, T(problem.tiles.scale.s), out,
                [&](int64_t j, T* sum) { add_positive(j, sum, unit); });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem<T>& problem, const Tensor& gradient,
                                                    const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, int64_t reduction,
                                                    const OptionalTensor& scale_tensor, const Tensor& sums,
                                                    const Tensor& key_means, bool negatives_gradient) {
  const int64_t n = problem.n(), dim = problem.dim();
  check_upstream(gradient, reduction, n);
  check_sums<T>(sums, n, problem.in_batch ? kept_count<T>(n, n, problem.dim()) : 0);
  check_saved<T>("key_means", key_means, {key_means.size(0) ? n : 0, dim});
  const std::vector<T> g = row_gradients<T>(gradient, reduction, n);
  const T *log_sums = sums.template data_ptr<T>(), *rest = log_sums + n, *means = key_means.template data_ptr<T>();
  const bool with_query = key_means.size(0) > 0;
  const T s = T(problem.tiles.scale.s);
  Tensor dq = at::empty(query.sizes(), query.options()), dk = at::empty(positive.sizes(), positive.options());
  if (!with_query) dq.zero_();
  const RowWriter<T> query_writer(dq), positive_writer(dk);
  std::vector<double> along(n);
  at::parallel_for(0, n, grain(20. * dim), [&](int64_t begin, int64_t end) {
    std::vector<T> row(dim);
    for (int64_t i = begin; i < end; i++) {
      const T *q = problem.query.row(i), *k = problem.positive.row(i);
      if (with_query) {
        for (int64_t d = 0; d < dim; d++) row[d] = s * g[i] * (means[i * dim + d] - rest[i] * k[d]);
        along[i] = problem.query.backward(i, row.data());
        query_writer.write(i, row.data(), problem.query.inverse_norm(i));
      }
      if (problem.in_batch) continue;
      for (int64_t d = 0; d < dim; d++) row[d] = -s * g[i] * rest[i] * q[d];
      problem.positive.backward(i, row.data());
      positive_writer.write(i, row.data(), problem.positive.inverse_norm(i));
    }
  });
  Tensor dn = at::empty({0}, query.options());
  if (problem.in_batch && !negatives_gradient) dk.zero_();
  if (!problem.in_batch && negatives_gradient) dn = at::empty(negatives->sizes(), negatives->options());
  if (negatives_gradient) negatives_backward(problem, g, sums, problem.in_batch ? dk : dn);
  double s_dL_ds = 0;
  for (double x : along) s_dL_ds += x;
  return {dq, dk, dn, scale_gradient<T>(s_dL_ds, problem.tiles.scale, scale_tensor)};
}

void check_rows(const Tensor& query, const Tensor& positive, const OptionalTensor& negatives) {
  TORCH_CHECK_VALUE(query.dim() == 2 && query.sizes() == positive.sizes() && query.numel() > 0,
                    "positive: expected the shape (N, D) of query, not empty, got ", query.sizes(), " and ",
                    positive.sizes());
  TORCH_CHECK_VALUE(
      !negatives || (negatives->size(-1) == query.size(1) && negatives->numel() > 0 &&
                     (negatives->dim() == 2 || (negatives->dim() == 3 && negatives->size(0) == query.size(0)))),
      "negatives: expected (M, D) or (N, M, D) for query ", query.sizes());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce(const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, bool normalize_negatives,
                                                    double scale_number, const OptionalTensor& scale_tensor,
                                                    int64_t reduction, bool return_stats, bool query_gradient,
                                                    bool keep) {
  check_rows(query, positive, negatives);
  check_reduction(reduction);
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(query, [&]<typename T>() {
    return forward<T>({query, positive, negatives, !negatives, normalize_negatives, scale}, reduction, return_stats,
                      query_gradient, keep);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(const Tensor& gradient, const Tensor& query,
                                                             const Tensor& positive, const OptionalTensor& negatives,
                                                             bool in_batch, bool normalize_negatives,
                                                             double scale_number, const OptionalTensor& scale_tensor,
                                                             int64_t reduction, const Tensor& sums,
                                                             const Tensor& key_means, bool negatives_gradient) {
  check_rows(query, positive, negatives);
  TORCH_CHECK_VALUE(in_batch ? !negatives : negatives || !negatives_gradient,
                    "negatives: expected none in batch, and a tensor where their gradient is asked for");
  const Scale scale(scale_number, scale_tensor);
  return in_compute_type(query, [&]<typename T>() {
    return backward<T>({query, positive, negatives, in_batch, normalize_negatives, scale}, gradient, query, positive,
                       negatives, reduction, scale_tensor, sums, key_means, negatives_gradient);
  });
}

}  // namespace ssl_fast::cpu
