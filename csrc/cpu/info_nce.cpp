// InfoNCE in one pass over the negatives. With P_ij the softmax of query i over its positive k_i and
// its negatives n_j, and V_i = sum_j P_ij n_j kept from the forward pass:
//   dq_i = s g_i [ V_i - r_i k_i ],  dk_i = -s g_i r_i q_i,  dn_j = s sum_i g_i P_ij q_i,
// where r_i = 1 - P_i+ is summed from the negatives, not subtracted. In batch the negatives are the
// other positives, and dk gets dn besides.
#include "losses.h"
#include "reduction.h"
#include "walk.h"

namespace ssl_fast::cpu {
namespace {

constexpr int64_t kUnitsWanted = 32;  // pieces of work, by the shapes alone, for up to that many threads

// The queries, their positives and the keys they meet. Shared keys are one group, met by all
// queries; paired negatives are a group for each query.
template <typename T>
struct Problem {
  UnitRows<T> query, positive;
  const Tensor key_rows;
  const bool in_batch, paired, normalize_keys;
  const Scale scale;
  const T sign, magnitude;  // of the scale as the tiles use it
  std::vector<T> similarities;  // <q_i, k_i>

  // A backward pass without a gradient of the negatives has no keys.
  Problem(const Tensor& q, const Tensor& k, const OptionalTensor& negatives, bool in_batch, bool normalize_negatives,
          const Scale& scale)
      : query(q.size(0), q.size(1)),
        positive(q.size(0), q.size(1)),
        key_rows(in_batch ? k : negatives ? *negatives : Tensor()),
        in_batch(in_batch),
        paired(negatives && negatives->dim() == 3),
        normalize_keys(in_batch || normalize_negatives),
        scale(scale),
        sign(T(scale.sign())),
        magnitude(sign * T(scale.log2_scale)),
        similarities(q.size(0)) {
    query.fill(q, 0);
    positive.fill(k, 0);
    at::parallel_for(0, n(), grain(8. * dim()), [&](int64_t begin, int64_t end) {
      kernels<T>().dots(query.row(begin), positive.row(begin), query.width, end - begin, dim(),
                        similarities.data() + begin);
    });
  }

  int64_t n() const { return query.n; }
  int64_t dim() const { return query.dim; }
  int64_t key_count() const { return key_rows.size(-2); }
  int64_t groups() const { return paired ? n() : 1; }
  Keys<T> keys(int64_t group) const { return {paired ? key_rows.select(0, group) : key_rows, normalize_keys}; }

  // In batch query i leaves out its own positive, key i.
  LeftOut left_out() const { return {{in_batch ? 0 : kNowhere, kNowhere, kNowhere}}; }

  // Queries that walk together, whole groups of columns where there are several blocks.
  int64_t query_block() const {
    if (paired) return 1;
    const int64_t blocks = (n() + kTile - 1) / kTile;
    return std::min(kTile, round_up((n() + blocks - 1) / blocks, kernels<T>().column_group));
  }
  int64_t query_blocks() const { return (n() + query_block() - 1) / query_block(); }

  // Query block b packed as columns, into `columns` (kTile * dim).
  Queries<T> queries(int64_t b, T* columns) const {
    const int64_t first = b * query_block(), count = std::min(query_block(), n() - first);
    kernels<T>().pack(query.row(first), query.width, count, dim(), columns);
    return {columns, first, count, dim(), sign, magnitude, left_out()};
  }
};

// One thread's memory.
template <typename T>
struct Workspace {
  const Tensor tile_, scratch_, columns_;
  T *tile, *scratch, *columns;
  explicit Workspace(const UnitRows<T>& query)
      : tile_(new_empty<T>({kTile + kTileSlack, kTile})),
        scratch_(Keys<T>::scratch(query.width)),
        columns_(new_empty<T>({kTile, query.dim})),
        tile(tile_.template data_ptr<T>()),
        scratch(scratch_.template data_ptr<T>()),
        columns(columns_.template data_ptr<T>()) {}
};

// The walk of all queries over all keys. The keys are split into pieces when there are few blocks of
// queries, and what the pieces found is merged in their order.
template <typename T>
struct Walked {
  const int64_t n, width, pieces;
  Tensor weighted;  // (pieces, n, width), the sums of keys; empty unless asked for
  std::vector<T> maxima;
  std::vector<double> sums;
  std::vector<int64_t> counts;

  Walked(const Problem<T>& problem, bool with_weighted, bool with_counts)
      : n(problem.n()),
        width(problem.query.width),
        pieces(piece_count(problem)),
        weighted(new_zeros<T>({with_weighted ? pieces : 0, n, width})),
        maxima(pieces * n),
        sums(pieces * n),
        counts(with_counts ? pieces * n : 0) {
    const int64_t blocks = problem.query_blocks(), length = (problem.key_count() + pieces - 1) / pieces;
    at::parallel_for(0, blocks * pieces, grain(4. * problem.query_block() * length * problem.dim()),
                     [&](int64_t begin, int64_t end) {
                       Workspace<T> space(problem.query);
                       for (int64_t unit = begin; unit < end; unit++)
                         walk_piece(problem, unit / pieces, unit % pieces, length, space);
                     });
  }

  static int64_t piece_count(const Problem<T>& problem) {
    const int64_t wanted = (kUnitsWanted + problem.query_blocks() - 1) / problem.query_blocks();
    return std::min(wanted, (problem.key_count() + 4 * kTile - 1) / (4 * kTile));
  }

  void walk_piece(const Problem<T>& problem, int64_t block, int64_t piece, int64_t length, Workspace<T>& space) {
    const Queries<T> queries = problem.queries(block, space.columns);
    const int64_t place = piece * n + queries.first, begin = std::min(piece * length, problem.key_count());
    const int64_t end = std::min(begin + length, problem.key_count());
    T thresholds[kTile] = {};
    for (int64_t c = 0; c < queries.n; c++)
      thresholds[c] = problem.similarities[queries.first + c] * problem.sign;
    Softmax<T> softmax;
    walk<T>(queries, problem.keys(problem.paired ? block : 0), begin, end, space.tile, space.scratch, softmax,
            weighted.numel() ? weighted.template data_ptr<T>() + place * width : nullptr, thresholds,
            counts.empty() ? nullptr : counts.data() + place);
    std::copy_n(softmax.maxima, queries.n, maxima.begin() + place);
    std::copy_n(softmax.sums, queries.n, sums.begin() + place);
  }

  int64_t rank(int64_t i) const {
    int64_t count = 0;
    for (int64_t piece = 0; piece < pieces; piece++) count += counts[piece * n + i];
    return count;
  }

  // Merges the pieces of query i: log2 of the sum over its negatives.
  double log_sum(int64_t i) const {
    double highest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t piece = 0; piece < pieces; piece++) highest = std::max(highest, double(maxima[piece * n + i]));
    for (int64_t piece = 0; piece < pieces; piece++)
      if (sums[piece * n + i] != 0) sum += sums[piece * n + i] * std::exp2(maxima[piece * n + i] - highest);
    return highest + std::log2(sum);
  }

  // V_i (dim), with the log2 of the whole sum.
  void mean(int64_t i, double whole, T* out, int64_t dim) const {
    std::fill_n(out, dim, T(0));
    for (int64_t piece = 0; piece < pieces; piece++) {
      const T factor = T(std::exp2(maxima[piece * n + i] - whole));
      const T* part = weighted.template data_ptr<T>() + (piece * n + i) * width;
      for (int64_t d = 0; d < dim; d++) out[d] += factor * part[d];
    }
  }
};

// The sum of <q_i, n_j> over all queries and their negatives, in O(K D).
template <typename T>
double negative_similarity_sum(const Problem<T>& problem, double positive_sum) {
  const int64_t dim = problem.dim();
  const Tensor scratch = Keys<T>::scratch(problem.query.width);
  std::vector<double> query_sum(dim);
  double sum = 0;
  for (int64_t group = 0; group < problem.groups(); group++) {
    std::fill(query_sum.begin(), query_sum.end(), 0);
    for (int64_t i = group; i < (problem.paired ? group + 1 : problem.n()); i++)
      std::transform(query_sum.begin(), query_sum.end(), problem.query.row(i), query_sum.begin(), std::plus<>());
    const Keys<T> keys = problem.keys(group);
    for (int64_t first = 0; first < keys.count; first += kTile) {
      const int64_t count = std::min(kTile, keys.count - first);
      const auto block = keys.block(first, count, scratch.template data_ptr<T>());
      for (int64_t j = 0; j < count; j++)
        for (int64_t d = 0; d < dim; d++) sum += query_sum[d] * block.rows[j * block.stride + d];
    }
  }
  return problem.in_batch ? sum - positive_sum : sum;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Problem<T>& problem, int64_t reduction, bool return_stats,
                                                   bool query_gradient) {
  const int64_t n = problem.n(), dim = problem.dim();
  const Walked<T> walked(problem, query_gradient, return_stats);
  Tensor sums = new_empty<T>({2, n}), key_means = new_empty<T>({query_gradient ? n : 0, dim});
  T* log_sums = sums.template data_ptr<T>();
  T* means = key_means.template data_ptr<T>();
  std::vector<double> loss_rows(n);
  at::parallel_for(0, n, grain(2. * walked.pieces * dim + 200), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const double score = double(problem.similarities[i]) * problem.sign * problem.magnitude;
      const double x = walked.log_sum(i) - score;
      const double whole = score + softplus2(x);
      loss_rows[i] = softplus2(x) * kLn2;
      log_sums[i] = T(whole);
      log_sums[n + i] = T(negatives_share(x));
      if (query_gradient) walked.mean(i, whole, means + i * dim, dim);
    }
  });
  Tensor stats = new_empty<T>({0});
  if (return_stats) {
    std::vector<int64_t> ranks(n);
    double positive_sum = 0;
    for (int64_t i = 0; i < n; i++) {
      ranks[i] = walked.rank(i);
      positive_sum += problem.similarities[i];
    }
    stats = contrastive_stats<T>(loss_rows, ranks, positive_sum, negative_similarity_sum(problem, positive_sum),
                                 problem.key_count() - problem.in_batch);
  }
  return {reduce<T>(loss_rows, reduction), stats, sums, key_means};
}

// dn_j for all keys into gradient rows (contiguous, shaped as the keys), through the normalisation
// if there is one; in batch key i gets dk_i besides, as query i's positive.
template <typename T>
void keys_backward(const Problem<T>& problem, const std::vector<T>& g, const T* log_sums, const Tensor& out) {
  const T* rest = log_sums + problem.n();
  const int64_t width = problem.query.width, dim = problem.dim();
  const int64_t blocks = (problem.key_count() + kTile - 1) / kTile;
  at::parallel_for(0, problem.groups() * blocks, 1, [&](int64_t begin, int64_t end) {
    const auto& kernel = kernels<T>();
    Workspace<T> space(problem.query);
    const Tensor gradients = new_empty<T>({kTile, width});
    T* gradient = gradients.template data_ptr<T>();
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t group = unit / blocks, first = unit % blocks * kTile;
      const Keys<T> keys = problem.keys(group);
      const int64_t count = std::min(kTile, keys.count - first);
      T inverse_norms[kTile];
      const auto block = keys.block(first, count, space.scratch, inverse_norms);
      std::fill_n(gradient, count * width, T(0));
      for (int64_t b = problem.paired ? group : 0; b < (problem.paired ? group + 1 : problem.query_blocks()); b++) {
        const Queries<T> queries = problem.queries(b, space.columns);
        T column_sums[kTile] = {}, weights[kTile] = {};
        std::copy_n(log_sums + queries.first, queries.n, column_sums);
        std::copy_n(g.data() + queries.first, queries.n, weights);
        kernel.scores({block.rows, block.stride, queries.columns, count, queries.n, dim, queries.sign},
                      space.tile);
        kernel.softmax_weights(space.tile, count, queries.n, queries.magnitude, column_sums, weights, nullptr, nullptr);
        leave_out(queries.left_out.seen_from(first, queries.first), space.tile, count, queries.n, T(0));
        kernel.add_rows(space.tile, count, queries.n, problem.query.row(queries.first), width, width, gradient);
      }
      const RowWriter<T> writer(problem.paired ? out.select(0, group) : out);
      for (int64_t j = 0; j < count; j++) {
        T* row = gradient + j * width;
        const T pull = problem.in_batch ? g[first + j] * rest[first + j] : T(0);
        const T* q = problem.query.row(problem.in_batch ? first + j : 0);
        for (int64_t d = 0; d < dim; d++) row[d] = T(problem.scale.s) * (row[d] - pull * q[d]);
        if (problem.normalize_keys)
          kernel.normalize_backward(block.rows + j * block.stride, row, dim, inverse_norms[j]);
        writer.write(first + j, row);
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Problem<T>& problem, const Tensor& gradient,
                                                    const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, int64_t reduction,
                                                    const OptionalTensor& temperature_tensor, const Tensor& sums,
                                                    const Tensor& key_means, bool negatives_gradient) {
  const int64_t n = problem.n(), dim = problem.dim();
  check_upstream(gradient, reduction, n);
  check_saved<T>("sums", sums, {2, n});
  check_saved<T>("key_means", key_means, {key_means.size(0) ? n : 0, dim});
  const std::vector<T> g = row_gradients<T>(gradient, reduction, n);
  const T *log_sums = sums.template data_ptr<T>(), *rest = log_sums + n, *means = key_means.template data_ptr<T>();
  const bool with_query = key_means.size(0) > 0;
  const T s = T(problem.scale.s);
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
        along[i] = kernels<T>().normalize_backward(q, row.data(), dim, problem.query.inverse_norm(i));
        query_writer.write(i, row.data());
      }
      if (problem.in_batch) continue;
      for (int64_t d = 0; d < dim; d++) row[d] = -s * g[i] * rest[i] * q[d];
      kernels<T>().normalize_backward(k, row.data(), dim, problem.positive.inverse_norm(i));
      positive_writer.write(i, row.data());
    }
  });
  Tensor dn = at::empty({0}, query.options());
  if (problem.in_batch && !negatives_gradient) dk.zero_();
  if (!problem.in_batch && negatives_gradient) dn = at::empty(negatives->sizes(), negatives->options());
  if (negatives_gradient) keys_backward(problem, g, log_sums, problem.in_batch ? dk : dn);
  double s_dL_ds = 0;
  for (double x : along) s_dL_ds += x;
  return {dq, dk, dn, temperature_gradient<T>(s_dL_ds, problem.scale, temperature_tensor)};
}

void check_rows(const Tensor& query, const Tensor& positive, const OptionalTensor& negatives) {
  TORCH_CHECK_VALUE(query.dim() == 2 && query.sizes() == positive.sizes() && query.numel() > 0,
                    "positive: expected the shape (N, D) of query, not empty, got ", query.sizes(), " and ",
                    positive.sizes());
  TORCH_CHECK_VALUE(!negatives || (negatives->size(-1) == query.size(1) && negatives->numel() > 0 &&
                                   (negatives->dim() == 2 ||
                                    (negatives->dim() == 3 && negatives->size(0) == query.size(0)))),
                    "negatives: expected (M, D) or (N, M, D) for query ", query.sizes());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce(const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, bool normalize_negatives,
                                                    double temperature, const OptionalTensor& temperature_tensor,
                                                    int64_t reduction, bool return_stats, bool query_gradient) {
  check_rows(query, positive, negatives);
  check_reduction(reduction);
  const Scale scale(temperature, temperature_tensor);
  const auto run = [&]<typename T>() {
    return forward<T>({query, positive, negatives, !negatives, normalize_negatives, scale}, reduction, return_stats,
                      query_gradient);
  };
  return query.scalar_type() == at::kDouble ? run.template operator()<double>() : run.template operator()<float>();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& positive, const OptionalTensor& negatives,
    bool in_batch, bool normalize_negatives, double temperature, const OptionalTensor& temperature_tensor,
    int64_t reduction, const Tensor& sums, const Tensor& key_means, bool negatives_gradient) {
  check_rows(query, positive, negatives);
  TORCH_CHECK_VALUE(in_batch ? !negatives : negatives || !negatives_gradient,
                    "negatives: expected none in batch, and a tensor where their gradient is asked for");
  const Scale scale(temperature, temperature_tensor);
  const auto run = [&]<typename T>() {
    return backward<T>({query, positive, negatives, in_batch, normalize_negatives, scale}, gradient, query, positive,
                       negatives, reduction, temperature_tensor, sums, key_means, negatives_gradient);
  };
  return query.scalar_type() == at::kDouble ? run.template operator()<double>() : run.template operator()<float>();
}

}  // namespace ssl_fast::cpu
