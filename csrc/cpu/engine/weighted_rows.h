// Sums of rows weighted by a softmax, whose entries were kept or are computed again from their log sums. They are
// what gradients of unit rows are made of. With the fixed shift, a pair's weight serves its row and its column. With a
// running maximum, a pass over queries and keys adds to the queries alone, and another pass adds to the keys.
#pragma once
#include "symmetric_tiles.h"

namespace ssl_fast {

// What the forward pass saved of one side of the pairs, and what its rows are weighted with: a pair's weight is
// exp2(score - log_sum) * gradient. Null: this side has no weights.
template <typename T>
struct SavedSums {
  const T *log_sums = nullptr, *gradients = nullptr;
};

// Fills the tile (keys first_key .. first_key + m, queries) with the sum of both sides' weights, zero where a pair does
// not count.
template <typename T>
void fill_weights(const QueryBlock<T>& queries, const KeyBlock<T>& keys, int64_t first_key, int64_t m,
                  const SavedSums<T>& of_queries, const SavedSums<T>& of_keys, T* tile) {
  T log_sums[kTile] = {}, gradients[kTile] = {};
  std::copy_n(of_queries.log_sums + queries.first, queries.n, log_sums);
  std::copy_n(of_queries.gradients + queries.first, queries.n, gradients);
  const bool both = of_keys.log_sums;
  fill_dots(queries, keys, first_key, m, tile);
  kernels<T>().softmax_weights(tile, m, queries.n, queries.magnitude, log_sums, gradients,
                               both ? of_keys.log_sums + first_key : nullptr,
                               both ? of_keys.gradients + first_key : nullptr);
  exclude(queries.mask.of_tile(first_key, queries.first), tile, m, queries.n, T(0));
}

// Adds to du (n, width) of each query the sum over its keys of weight * key. All queries share the keys.
template <typename T>
void add_weighted_keys(const QueryKeyTiles<T>& tiles, const SavedSums<T>& of_queries, const SavedSums<T>& of_keys,
                       T* du) {
  const int64_t n = tiles.n(), width = tiles.query.width, pieces = tiles.pieces();
  const at::Tensor parts = new_zeros<T>({pieces - 1, n, width});  // the first piece adds to du
  const Keys<T> keys = tiles.keys(0);
  T* later = parts.template data_ptr<T>();
  tiles.each_piece([&](int64_t b, int64_t piece, int64_t begin, int64_t end, Workspace<T>& space) {
    const QueryBlock<T> queries = tiles.queries(b, space.columns);
    T* out = (piece ? later + (piece - 1) * n * width : du) + queries.first * width;
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = std::min(kTile, end - first);
      const KeyBlock<T> block = keys.block(first, count, space.scratch);
      fill_weights(queries, block, first, count, of_queries, of_keys, space.tile);
      kernels<T>().add_columns(space.tile, queries.n, count, block.rows, block.stride, width, out);
    }
  });
  at::parallel_for(0, n, grain(1. * pieces * width), [&](int64_t begin, int64_t end) {
    for (int64_t piece = 0; piece + 1 < pieces; piece++)
      for (int64_t k = begin * width; k < end * width; k++) du[k] += later[piece * n * width + k];
  });
}

// For each block of keys, the sum over their queries of weight * query, one row (width) a key. Calls
// use(group, first key, keys, key block, inverse norms, sums).
template <typename T, typename Use>
void each_weighted_query_sum(const QueryKeyTiles<T>& tiles, const SavedSums<T>& of_queries, const Use& use) {
  const int64_t width = tiles.query.width, blocks = tiles.key_blocks();
  at::parallel_for(0, tiles.groups() * blocks, 1, [&](int64_t begin, int64_t end) {
    Workspace<T> space(tiles.query);
    const at::Tensor sums = new_empty<T>({kTile, width});
    T* sum = sums.template data_ptr<T>();
    for (int64_t item = begin; item < end; item++) {
      const int64_t group = item / blocks, first = item % blocks * kTile;
      const Keys<T> keys = tiles.keys(group);
      const int64_t count = std::min(kTile, keys.count - first);
      T inverse_norms[kTile];
      const KeyBlock<T> block = keys.block(first, count, space.scratch, inverse_norms);
      std::fill_n(sum, count * width, T(0));
      for (int64_t b = tiles.paired ? group : 0; b < (tiles.paired ? group + 1 : tiles.query_blocks()); b++) {
        const QueryBlock<T> queries = tiles.queries(b, space.columns);
        fill_weights(queries, block, first, count, of_queries, {}, space.tile);
        kernels<T>().add_rows(space.tile, count, queries.n, tiles.query.row(queries.first), width, width, sum);
      }
      use(group, first, count, block, inverse_norms, sum);
    }
  });
}

// g_unit, a power of two near the largest upstream gradient. Gradients are divided by it before they are multiplied by
// 1 / Z, which may be as large as exp(80): the product could overflow. The weighted sums are multiplied by it again.
template <typename T>
T gradient_unit(const std::vector<T>& gradients) {
  T largest = 0;
  for (const T x : gradients) largest = std::max(largest, std::abs(x));
  return largest > 0 && std::isfinite(largest) ? T(std::exp2(std::ilogb(largest))) : T(1);
}

// Rows are split among threads in groups of this many, so that each thread's first row is a multiple of every SIMD
// level's vector.
constexpr int64_t kOwnRowGroup = 16;

// With kept pairs: adds to each row of out, (rows, width) or with of_columns (columns, width), the sum over the other
// side of weight * row of that side. Only one thread writes to a row of out, so there are no rounds.
template <typename T>
void add_kept_rows(const SymmetricTiles<T>& tiles, bool of_columns, const T* row_weights, const T* column_weights,
                   T* out) {
  const UnitRows<T>&own = of_columns ? tiles.columns : tiles.rows, &other = of_columns ? tiles.rows : tiles.columns;
  const int64_t width = own.width, group = kOwnRowGroup;
  const auto add = [&](int64_t row, int64_t m, int64_t first, int64_t n, T* tile) {
    // Where both sets are the same rows, only the blocks on and above the diagonal are kept. What stands left of the
    // diagonal's block is read from above it, transposed.
    const bool transposed = of_columns || (tiles.same_rows && first < row / tiles.block * tiles.block);
    const int64_t r = transposed ? first : row, c = transposed ? row : first;
    const auto& kernel = kernels<T>();
    kernel.weigh_kept(tiles.kept.tile(r, c), tiles.kept.stride, transposed ? n : m, transposed ? m : n, row_weights + r,
                      column_weights + c, tile);
    const auto add_product = transposed ? kernel.add_columns : kernel.add_rows;
    add_product(tile, m, n, other.row(first), width, width, out + row * width);
  };
  at::parallel_for(0, (own.n + group - 1) / group, grain(2. * group * other.n * width),
                   [&](int64_t begin, int64_t end) {
                     const at::Tensor memory = new_empty<T>({kTile + kTileSlack, kTile});
                     // Where both sets are the same rows, a tile's rows end with their block, and its columns where
                     // the diagonal's block begins, so that `transposed` is one value for the whole tile.
                     const int64_t last = std::min(own.n, end * group);
                     for (int64_t row = begin * group, m; row < last; row += m) {
                       const int64_t block = row / tiles.block * tiles.block;
                       m = std::min({kTile, last - row, tiles.same_rows ? block + tiles.block - row : kTile});
                       for (int64_t first = 0, n; first < other.n; first += n) {
                         n = std::min(kTile, (tiles.same_rows && first < block ? block : other.n) - first);
                         add(row, m, first, n, memory.template data_ptr<T>());
                       }
                     }
                   });
}

// Adds to d_rows (rows, width) of each row the sum over the columns of weight * column, and to d_columns (columns,
// width) of each column the sum over the rows of weight * row; either may be null. Where both sets are the same rows,
// d_rows and d_columns are the same. The weight of a kept pair is what was kept, an exponential with the fixed shift or
// a sigmoid, times the sum of its row's and its column's weight. Where pairs were not kept, weights(tile input, first
// row, first column, tile) fills a tile with them.
template <typename T, typename Weights>
void add_weighted_rows(const SymmetricTiles<T>& tiles, T* d_rows, T* d_columns, const T* row_weights,
                       const T* column_weights, const Weights& weights) {
  if (tiles.kept) {
    if (d_rows) add_kept_rows(tiles, false, row_weights, column_weights, d_rows);
    if (d_columns && !tiles.same_rows) add_kept_rows(tiles, true, row_weights, column_weights, d_columns);
    return;
  }
  const at::Tensor memory = new_empty<T>({at::get_num_threads(), kTile + kTileSlack, kTile});
  const int64_t width = tiles.rows.width;
  tiles.each([&](int64_t i, int64_t j) {
    const auto& kernel = kernels<T>();
    T* tile = memory.template data_ptr<T>() + at::get_thread_num() * memory.stride(0);
    const int64_t r = tiles.first(i), c = tiles.first(j);
    const int64_t m = tiles.size(tiles.rows.n, i), n = tiles.size(tiles.columns.n, j);
    weights(tiles.tile(i, j), r, c, tile);
    if (d_rows) kernel.add_rows(tile, m, n, tiles.columns.row(c), width, width, d_rows + r * width);
    if (d_columns && !(tiles.same_rows && i == j))
      kernel.add_columns(tile, n, m, tiles.rows.row(r), width, width, d_columns + c * width);
  });
}

// The same for exponentials with the fixed shift, kept or computed again.
template <typename T>
void add_exp_weighted_rows(const SymmetricTiles<T>& tiles, T* d_rows, T* d_columns, const T* row_weights,
                           const T* column_weights) {
  add_weighted_rows(tiles, d_rows, d_columns, row_weights, column_weights,
                    [&](const TileInput<T>& in, int64_t r, int64_t c, T* tile) {
                      kernels<T>().exp_weights(in, tiles.shift, row_weights + r, column_weights + c, tile);
                    });
}

// What the exponentials of each row are multiplied by: g_i / Z_i, divided by g_unit and multiplied by exp2(shift),
// because an exponential is exp2(score - shift).
template <typename T>
std::vector<T> fixed_shift_weights(const SymmetricTiles<T>& tiles, const T* g, T g_unit, const T* log_sums, int64_t n) {
  std::vector<T> out(n);
  for (int64_t i = 0; i < n; i++) out[i] = g[i] / g_unit * T(std::exp2(double(tiles.shift) - log_sums[i]));
  return out;
}

// Rows with each other: adds to du (n, width) of row i the sum of (g_i P_ik + g_k P_ki) u_k / g_unit over all k for
// which the mask lets the pair (i, k) count, with P_ik = exp2(score_ik - log_sum_i). Returns g_unit.
template <typename T>
T add_symmetric_weighted_rows(const UnitRows<T>& rows, const Scale& scale, const Mask<T>& mask,
                              const KeptPairs<T>& kept, const std::vector<T>& g, const T* log_sums, T* du) {
  if (!scale.allows_fixed_shift(rows.normalized)) {
    const SavedSums<T> both{log_sums, g.data()};
    const auto tiles = QueryKeyTiles<T>::of_unit_rows(rows, rows, scale, mask, KeptDots<T>::read_from(kept));
    add_weighted_keys(tiles, both, both, du);
    return 1;
  }
  const SymmetricTiles<T> tiles(rows, rows, scale, mask, kept);
  const T g_unit = gradient_unit(g);
  const std::vector<T> a = fixed_shift_weights(tiles, g.data(), g_unit, log_sums, rows.n);
  add_exp_weighted_rows(tiles, du, du, a.data(), a.data());
  return g_unit;
}

}  // namespace ssl_fast
