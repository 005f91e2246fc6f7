// Sums weighted by the softmax, which is computed again from the log of its sum: right at any temperature
// and for rows of any norm, where the fixed shift of blocks.h is not. Which of the two runs is decided here.
#pragma once
#include "symmetric_tiles.h"
#include "online_softmax.h"

namespace ssl_fast {

// One side's weights of a pair: exp2(score - log_sum) * weight, for each of its rows; null: it has none.
template <typename T>
struct SoftmaxWeights {
  const T *log_sums = nullptr, *weights = nullptr;
};

// A tile (keys first_key .. + m, queries) of the weights of both sides, zero where left out.
template <typename T>
void weigh(const Queries<T>& queries, const typename Keys<T>::Block& keys, int64_t first_key, int64_t m,
           const SoftmaxWeights<T>& of_queries, const SoftmaxWeights<T>& of_keys, T* tile) {
  T log_sums[kTile] = {}, weights[kTile] = {};
  std::copy_n(of_queries.log_sums + queries.first, queries.n, log_sums);
  std::copy_n(of_queries.weights + queries.first, queries.n, weights);
  const bool both = of_keys.log_sums;
  kernels<T>().scores({keys.rows, keys.stride, queries.columns, m, queries.n, queries.dim, queries.sign}, tile);
  kernels<T>().softmax_weights(tile, m, queries.n, queries.magnitude, log_sums, weights,
                               both ? of_keys.log_sums + first_key : nullptr,
                               both ? of_keys.weights + first_key : nullptr);
  leave_out(queries.mask.seen_from(first_key, queries.first), tile, m, queries.n, T(0));
}

// Adds to du (n, width) of each query the sum over its keys of weight * key. Keys are shared.
template <typename T>
void query_attractions(const Meeting<T>& meeting, const SoftmaxWeights<T>& of_queries,
                       const SoftmaxWeights<T>& of_keys, T* du) {
  const int64_t n = meeting.n(), width = meeting.query.width, pieces = meeting.pieces();
  const at::Tensor parts = new_zeros<T>({pieces - 1, n, width});  // the first piece adds to du
  const Keys<T> keys = meeting.keys(0);
  T* later = parts.template data_ptr<T>();
  meeting.each_piece([&](int64_t b, int64_t piece, int64_t begin, int64_t end, Workspace<T>& space) {
    const Queries<T> queries = meeting.queries(b, space.columns);
    T* out = (piece ? later + (piece - 1) * n * width : du) + queries.first * width;
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = std::min(kTile, end - first);
      const auto block = keys.block(first, count, space.scratch);
      weigh(queries, block, first, count, of_queries, of_keys, space.tile);
      kernels<T>().add_columns(space.tile, queries.n, count, block.rows, block.stride, width, out);
    }
  });
  at::parallel_for(0, n, grain(1. * pieces * width), [&](int64_t begin, int64_t end) {
    for (int64_t piece = 0; piece + 1 < pieces; piece++)
      for (int64_t k = begin * width; k < end * width; k++) du[k] += later[piece * n * width + k];
  });
}

// For each block of keys the sum over their queries of weight * query, one row (width) a key:
// use(group, first key, keys, block, inverse norms, sums).
template <typename T, typename Use>
void key_attractions(const Meeting<T>& meeting, const SoftmaxWeights<T>& of_queries, const SoftmaxWeights<T>& of_keys,
                     const Use& use) {
  const int64_t width = meeting.query.width, blocks = meeting.key_blocks();
  at::parallel_for(0, meeting.groups() * blocks, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> space(meeting.query);
    const at::Tensor sums = new_empty<T>({kTile, width});
    T* sum = sums.template data_ptr<T>();
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t group = unit / blocks, first = unit % blocks * kTile;
      const Keys<T> keys = meeting.keys(group);
      const int64_t count = std::min(kTile, keys.count - first);
      T inverse_norms[kTile];
      const auto block = keys.block(first, count, space.scratch, inverse_norms);
      std::fill_n(sum, count * width, T(0));
      for (int64_t b = meeting.paired ? group : 0; b < (meeting.paired ? group + 1 : meeting.query_blocks()); b++) {
        const Queries<T> queries = meeting.queries(b, space.columns);
        weigh(queries, block, first, count, of_queries, of_keys, space.tile);
        kernels<T>().add_rows(space.tile, count, queries.n, meeting.query.row(queries.first), width, width, sum);
      }
      use(group, first, count, block, inverse_norms, sum);
    }
  });
}

// Rows meet each other: the rows of UnitRows as keys that are taken as they are.
template <typename T>
Meeting<T> with_each_other(const UnitRows<T>& unit, const Scale& scale, const Mask<T>& mask) {
  return {unit, unit.rows.slice(0, 0, unit.n), false, scale, mask};
}

template <typename T>
bool takes_fixed_shift(const UnitRows<T>& rows, const Scale& scale) {
  return rows.normalized && scale.fixed_shift();
}

// log2 of the sum of exp2(score_ik) over the k that the mask leaves to row i, for all rows.
template <typename T>
std::vector<double> symmetric_log_sums(const UnitRows<T>& unit, const Scale& scale, const Mask<T>& mask,
                                       RankCounts<T>& counts) {
  std::vector<double> out(unit.n);
  if (takes_fixed_shift(unit, scale)) {
    const Blocks<T> blocks(unit, unit, scale, mask);
    std::vector<T> sums(unit.n);
    fixed_sums(blocks, sums.data(), sums.data(), counts);
    for (int64_t i = 0; i < unit.n; i++) out[i] = std::log2(double(sums[i])) + blocks.shift;
    return out;
  }
  const Walked<T> walked(with_each_other(unit, scale, mask), false, counts.positives);
  for (int64_t i = 0; i < unit.n; i++) {
    out[i] = walked.log_sum(i);
    if (!counts.positives.empty()) counts.of_rows[i] = walked.rank(i);
  }
  return out;
}

// Adds to du of row i the sum over the k that the mask leaves of (g_i P_ik + g_k P_ki) u_k, with
// P_ik = exp2(score_ik - log_sum_i), in units of what is returned.
template <typename T>
T symmetric_attractions(const UnitRows<T>& unit, const Scale& scale, const Mask<T>& mask, const std::vector<T>& g,
                        const T* log_sums, T* du) {
  if (!takes_fixed_shift(unit, scale)) {
    const SoftmaxWeights<T> both{log_sums, g.data()};
    query_attractions(with_each_other(unit, scale, mask), both, both, du);
    return 1;
  }
  const Blocks<T> blocks(unit, unit, scale, mask);
  const T g_unit = gradient_unit(g);
  std::vector<T> a(unit.n);
  for (int64_t i = 0; i < unit.n; i++) a[i] = g[i] / g_unit * T(std::exp2(double(blocks.shift) - log_sums[i]));
  add_attractions(blocks, du, du, [&](const TileInput<T>& in, int64_t r, int64_t c, T* tile) {
    kernels<T>().exp_weights(in, blocks.shift, a.data() + r, a.data() + c, tile);
  });
  return g_unit;
}

}  // namespace ssl_fast
