// InfoNCE in one pass over the negatives with a running maximum or, where all pairs can be kept, with the fixed shift.
// With P_ij the softmax of query i over its positive k_i and its negatives n_j, and V_i = sum_j P_ij n_j (`key_means`),
// which the forward pass keeps:
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

// Numbers that keep all pairs of the queries with their candidates, which are shared; 0 where they are not kept.
template <typename T>
int64_t kept_pairs(const Tensor& query, const OptionalTensor& negatives, bool in_batch) {
  if (!in_batch && (!negatives || negatives->dim() == 3)) return 0;
  return kept_count<T>(query.size(0), in_batch ? query.size(0) : negatives->size(0), query.size(1));
}

// Shared negatives are taken for a queue or a bank, and read where they lie, if there are more of them for each query:
// the fixed shift needs a normalised copy.
constexpr int64_t kMostNegativesCopied = 8;

// Whether the candidates are copied as unit rows, as the fixed shift needs them. By the shapes alone: a loss with a
// graph has the same bits as one without.
bool copies_candidates(const Tensor& query, const OptionalTensor& negatives, bool normalize_negatives) {
  return !negatives || (normalize_negatives && negatives->size(0) <= kMostNegativesCopied * query.size(0));
}

// The queries, their positives and their negatives, which in batch are the other positives.
template <typename T>
struct Problem {
  UnitRows<T> query, positive;
  const bool in_batch;
  std::vector<T> similarities;          // <q_i, k_i>; empty in the backward pass, which does not need them
  const int64_t pairs;                  // numbers that keep all pairs, 0 where they are not kept
  const bool fixed_shift;               // whether all pairs are computed with the fixed shift
  std::optional<UnitRows<T>> negative;  // where the shift is fixed, unless in batch
  const KeptPairs<T> kept;              // what the forward pass writes and the backward pass reads; may be none
  const QueryKeyTiles<T> tiles;

  // sums: of the forward pass; `saved` in the backward pass. A backward pass that computes no gradient of the negatives
  // is not given them: its tiles have no keys.
  Problem(const Tensor& q, const Tensor& k, const OptionalTensor& negatives, bool in_batch, bool normalize_negatives,
          const Scale& scale, const Tensor& sums, bool saved)
      : query(q, true),
        positive(k, true),
        in_batch(in_batch),
        similarities(saved ? std::vector<T>() : pair_similarities(query, positive)),
        pairs(kept_pairs<T>(q, negatives, in_batch)),
        fixed_shift(pairs && copies_candidates(q, negatives, normalize_negatives) && scale.allows_fixed_shift(true)),
        kept(sums, n(), fixed_shift && !in_batch ? negatives->size(0) : n()),
        // In batch the positive of query i is key i, which is not among its negatives.
        tiles(query,
              in_batch    ? k
              : negatives ? *negatives
                          : Tensor(),
              in_batch || normalize_negatives, scale, Mask<T>::of(in_batch ? kNotSelf : kAll),
              fixed_shift ? KeptDots<T>()
              : saved     ? KeptDots<T>::read_from(kept)
                          : KeptDots<T>::written(kept)) {
    if (fixed_shift && !in_batch) negative.emplace(*negatives, true);
  }
  Problem(const Problem&) = delete;  // `tiles` refers to `query`

  const UnitRows<T>& candidates() const { return in_batch ? positive : *negative; }
  SymmetricTiles<T> tiles_of(const KeptPairs<T>& kept) const {
    return {query, candidates(), tiles.scale, tiles.mask, kept};
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

// Sums over the candidates with the fixed shift; as PartialSums, which have a running maximum.
template <typename T>
struct FixedShiftSums {
  const Tensor own_pairs;  // the pairs until the weighted sums are there, unless they are saved
  const SymmetricTiles<T> tiles;
  RankCounts<T> counts;
  std::vector<double> log_sums;
  const Tensor weighted;  // (n, width): sums of E * key; empty unless asked for

  FixedShiftSums(const Problem<T>& problem, bool with_weighted, const std::vector<T>& thresholds)
      : own_pairs(new_empty<T>({with_weighted && !problem.kept ? problem.pairs : 0})),
        tiles(problem.tiles_of(problem.kept ? problem.kept : KeptPairs<T>::of(own_pairs, problem.candidates().n))),
        weighted(new_zeros<T>({with_weighted ? problem.n() : 0, problem.query.width})) {
    counts.positives = thresholds;
    counts.of_rows.resize(thresholds.size());
    log_sums = fixed_shift_log_sums(tiles, false, counts);
    const std::vector<T> ones(problem.n(), 1), zeros(problem.candidates().n);
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
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Problem<T>& problem, const Tensor& sums, int64_t reduction,
                                                   bool return_stats, bool query_gradient) {
  std::vector<T> thresholds(return_stats ? problem.n() : 0);
  for (size_t i = 0; i < thresholds.size(); i++) thresholds[i] = problem.similarities[i] * problem.tiles.sign;
  if (problem.fixed_shift)
    return results(problem, FixedShiftSums<T>(problem, query_gradient, thresholds), sums, reduction, return_stats,
                   query_gradient);
  return results(problem, PartialSums<T>(problem.tiles, query_gradient, thresholds), sums, reduction, return_stats,
                 query_gradient);
}

// Writes dn_j of all negatives to `out`. In batch key j is the positive of query j too, and dk_j is added.
template <typename T>
void negatives_backward(const Problem<T>& problem, const std::vector<T>& g, const Tensor& sums, const Tensor& out) {
  const int64_t n = problem.n();
  const T *log_sums = sums.template data_ptr<T>(), *rest = log_sums + n;
  // Multiplies the sum of key j by g_unit again, and adds what the key gets as the positive of query j.
  const auto add_positive = [&](int64_t j, T* sum, T g_unit) {
    const T pull = g[j] * rest[j];
    const T* q = problem.query.row(j);
    for (int64_t d = 0; d < problem.dim(); d++) sum[d] = sum[d] * g_unit - pull * q[d];
  };
  if (!problem.fixed_shift) {
    keys_backward<T>(problem.tiles, {log_sums, g.data()}, out, [&](int64_t j, T* sum) {
      if (problem.in_batch) add_positive(j, sum, 1);
    });
    return;
  }
  const SymmetricTiles<T> pairs = problem.tiles_of(problem.kept);
  const T g_unit = gradient_unit(g);
  const std::vector<T> weights = fixed_shift_weights(pairs, g.data(), g_unit, log_sums, n),
                       zeros(problem.candidates().n);
  const UnitRows<T>& candidates = problem.candidates();
  const Tensor du = new_zeros<T>({candidates.n, candidates.width});
  add_exp_weighted_rows<T>(pairs, nullptr, du.template data_ptr<T>(), weights.data(), zeros.data());
  if (problem.in_batch)
    rows_backward(candidates, du, T(problem.tiles.scale.s), out,
                  [&](int64_t j, T* sum) { add_positive(j, sum, g_unit); });
  else
    rows_backward(candidates, du, T(problem.tiles.scale.s) * g_unit, out);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem<T>& problem, const Tensor& gradient,
                                                    const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, int64_t reduction,
                                                    const OptionalTensor& scale_tensor, const Tensor& sums,
                                                    const Tensor& key_means, bool negatives_gradient) {
  const int64_t n = problem.n(), dim = problem.dim();
  check_upstream(gradient, reduction, n);
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
        for (int64_t d = 0; d < dim; d++) row[d] = means[i * dim + d] - rest[i] * k[d];
        along[i] = problem.query.backward(i, s * g[i], row.data(), query_writer, i, row.data());
      }
      if (problem.in_batch) continue;
      problem.positive.backward(i, -s * g[i] * rest[i], q, positive_writer, i, row.data());
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
    const int64_t pairs = kept_pairs<T>(query, negatives, !negatives);
    const Tensor sums = new_sums<T>(query.size(0), keep ? pairs : 0);
    const Problem<T> problem(query, positive, negatives, !negatives, normalize_negatives, scale, sums, false);
    return forward<T>(problem, sums, reduction, return_stats, query_gradient);
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
    check_sums<T>(sums, query.size(0), kept_pairs<T>(query, negatives, in_batch));
    const Problem<T> problem(query, positive, negatives, in_batch, normalize_negatives, scale, sums, true);
    return backward<T>(problem, gradient, query, positive, negatives, reduction, scale_tensor, sums, key_means,
                       negatives_gradient);
  });
}

}  // namespace ssl_fast::cpu
