// All pairs of two sets of unit rows, tile by tile, with the fixed shift |s|: E_ik = exp(s <u_i, v_k> - |s|) is at most
// 1 and serves the sums of row i and of column k. Where both sets are the same rows, each pair is computed once.
#pragma once
#include "block_schedule.h"
#include "kept_pairs.h"
#include "online_softmax.h"

#include <cmath>
#include <vector>

namespace ssl_fast {

template <typename T>
struct SymmetricTiles {
  const UnitRows<T>&rows, &columns;
  const Mask<T> mask;
  const bool same_rows;  // whether the columns are the rows themselves
  const at::Tensor packed;
  const T scale, shift;     // in powers of two
  const int64_t block;      // rows or columns of a tile
  const KeptPairs<T> kept;  // what the forward pass writes and the backward pass reads; may be none

  SymmetricTiles(const UnitRows<T>& rows, const UnitRows<T>& columns, const Scale& s, const Mask<T>& mask,
                 const KeptPairs<T>& kept)
      : rows(rows),
        columns(columns),
        mask(mask),
        same_rows(&rows == &columns),
        packed(columns.packed()),
        scale(T(s.log2_scale)),
        shift(std::abs(scale)),
        block(block_size(std::max(rows.n, columns.n), rows.dim)),
        kept(kept) {}

  // By the shapes alone, never by the threads: it fixes the order of sums.
  static int64_t block_size(int64_t n, int64_t dim) {
    const int64_t group = kernels<T>().column_group;
    // Few short rows are one block, for one thread; few long ones are worth two threads.
    const int64_t few = n * n * dim < 1 << 21 ? n : 48;
    const int64_t wanted = n <= 128 ? few : n <= 1536 ? 96 : kTile;
    return std::min(kTile, round_up(wanted, group));
  }

  int64_t count(int64_t n) const { return (n + block - 1) / block; }
  int64_t first(int64_t b) const { return b * block; }
  int64_t size(int64_t n, int64_t b) const { return std::min(block, n - first(b)); }

  // The tile of row block i and column block j.
  TileInput<T> tile(int64_t i, int64_t j) const {
    const T* packed_columns = packed.template data_ptr<T>() + first(j) * columns.dim;
    return {rows.row(first(i)), rows.width, packed_columns, size(rows.n, i),
            size(columns.n, j), rows.dim,   scale,          mask.of_tile(first(i), first(j))};
  }

  // Calls visit(i, j) for every pair of blocks; where both sets are the same rows, once for (i, j) and (j, i).
  template <typename Visit>
  void each(const Visit& visit) const {
    const int64_t grain = ssl_fast::grain(4. * block * block * rows.dim);
    if (same_rows)
      visit_symmetric_pairs(count(rows.n), grain, visit);
    else
      visit_all_pairs(count(rows.n), count(columns.n), grain, visit);
  }
};

// Zeros where the matrix of kept pairs is not written: beyond its rows and columns, and where both sets are the same
// rows, in the blocks below the diagonal.
template <typename T>
void clear_unwritten(const SymmetricTiles<T>& tiles) {
  if (!tiles.kept) return;
  const int64_t stride = tiles.kept.stride, columns = tiles.columns.n;
  at::parallel_for(0, round_up(tiles.rows.n, kKeptRowGroup), grain(1. * stride), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* row = tiles.kept.tile(i, 0);
      if (i >= tiles.rows.n) std::fill_n(row, stride, T(0));
      if (tiles.same_rows) std::fill_n(row, std::min(i / tiles.block * tiles.block, stride), T(0));
      std::fill(row + columns, row + stride, T(0));
    }
  });
}

// Counts, for each row and column, the candidates that are more similar than its positive. Counts nothing where
// positives is empty.
template <typename T>
struct RankCounts {
  std::vector<T> positives;  // sign(s) * the positive's similarity
  std::vector<int64_t> of_rows, of_columns;

  RankCounts() = default;
  // positive: similarities of n rows and, with `columns`, of as many columns.
  RankCounts(const std::optional<at::Tensor>& positive, const Scale& scale, int64_t n, bool columns) {
    if (!positive) return;
    TORCH_CHECK_VALUE(positive->dim() == 1 && positive->size(0) == n, "positive: expected ", n,
                      " similarities, one a row and column, got ", positive->sizes());
    const at::Tensor p = positive->to(c10::CppTypeToScalarType<T>::value).contiguous();
    for (int64_t i = 0; i < n; i++) positives.push_back(T(scale.sign()) * p.template data_ptr<T>()[i]);
    of_rows.resize(n), of_columns.resize(columns ? n : 0);
  }

  // (0, 1 or 2, n), as the operators return them.
  at::Tensor tensor(int64_t n) const {
    at::Tensor out = at::empty({positives.empty() ? 0 : of_columns.empty() ? 1 : 2, n}, at::kLong);
    int64_t* first = out.data_ptr<int64_t>();
    std::copy(of_columns.begin(), of_columns.end(), std::copy(of_rows.begin(), of_rows.end(), first));
    return out;
  }

  // What the tile (i, j) counts, into out; on the diagonal of a symmetric matrix for its rows alone. Returns whether
  // anything is counted.
  bool of_tile(const SymmetricTiles<T>& tiles, int64_t i, int64_t j, Ranks<T>& out) {
    if (positives.empty()) return false;
    const int64_t r = tiles.first(i), c = tiles.first(j);
    std::vector<int64_t>& columns = tiles.same_rows ? of_rows : of_columns;
    const bool both = !columns.empty() && !(tiles.same_rows && i == j);
    out = {positives.data() + r, positives.data() + c, of_rows.data() + r, both ? columns.data() + c : nullptr};
    return true;
  }
};

// Adds the sums of E to row_sums (rows) and, unless null, to column_sums (columns). For the same rows the two are
// one.
template <typename T>
void add_fixed_shift_sums(const SymmetricTiles<T>& tiles, T* row_sums, T* column_sums, RankCounts<T>& counts) {
  clear_unwritten(tiles);
  tiles.each([&](int64_t i, int64_t j) {
    Ranks<T> ranks{};
    const bool ranked = counts.of_tile(tiles, i, j, ranks);
    const bool both = column_sums && !(tiles.same_rows && i == j);
    kernels<T>().exp_sums(tiles.tile(i, j), tiles.shift, row_sums + tiles.first(i),
                          both ? column_sums + tiles.first(j) : nullptr, ranked ? &ranks : nullptr,
                          tiles.kept.tile(tiles.first(i), tiles.first(j)), tiles.kept.stride);
  });
}

// log2 of the sums of exp2(score), of the rows and, with `columns`, then of the columns; for the same rows, of these
// once.
template <typename T>
std::vector<double> fixed_shift_log_sums(const SymmetricTiles<T>& tiles, bool columns, RankCounts<T>& counts) {
  const bool both = columns && !tiles.same_rows;
  std::vector<T> sums(tiles.rows.n + (both ? tiles.columns.n : 0));
  add_fixed_shift_sums(tiles, sums.data(), columns ? sums.data() + (both ? tiles.rows.n : 0) : nullptr, counts);
  std::vector<double> out;
  for (const T sum : sums) out.push_back(std::log2(double(sum)) + tiles.shift);
  return out;
}

// Rows with each other: log2 of the sum of exp2(score_ik) over the k that the mask leaves to row i, for all rows.
// kept: where the pairs go, if anywhere.
template <typename T>
std::vector<double> symmetric_log_sums(const UnitRows<T>& unit, const Scale& scale, const Mask<T>& mask,
                                       const KeptPairs<T>& kept, RankCounts<T>& counts) {
  if (scale.allows_fixed_shift(unit.normalized))
    return fixed_shift_log_sums(SymmetricTiles<T>(unit, unit, scale, mask, kept), true, counts);
  std::vector<double> out(unit.n);
  const PartialSums<T> partial(QueryKeyTiles<T>::of_unit_rows(unit, unit, scale, mask), false, counts.positives);
  for (int64_t i = 0; i < unit.n; i++) {
    out[i] = partial.log_sum(i);
    if (!counts.positives.empty()) counts.of_rows[i] = partial.rank(i);
  }
  return out;
}

}  // namespace ssl_fast
