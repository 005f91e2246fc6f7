// All pairs of rows and columns in square blocks, with the fixed shift |s|: E_ik = exp(s <u_i, v_k> - |s|)
// of unit rows is at most 1 and serves the sums of row i and of column k. Where rows and columns are the
// same, each pair of blocks is computed once.
#pragma once
#include "unit_rows.h"
#include "block_schedule.h"

#include <cmath>
#include <vector>

namespace ssl_fast {

template <typename T>
struct Blocks {
  const UnitRows<T>&rows, &columns;
  const Mask<T> mask;
  const bool symmetric;
  const at::Tensor packed;
  const T scale, shift;  // in powers of two
  const int64_t block;

  Blocks(const UnitRows<T>& rows, const UnitRows<T>& columns, const Scale& s, const Mask<T>& mask)
      : rows(rows),
        columns(columns),
        mask(mask),
        symmetric(&rows == &columns),
        packed(columns.packed()),
        scale(T(s.log2_scale)),
        shift(std::abs(scale)),
        block(block_size(std::max(rows.n, columns.n), rows.dim)) {}

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

  TileInput<T> tile(int64_t i, int64_t j) const {
    const T* packed_columns = packed.template data_ptr<T>() + first(j) * columns.dim;
    return {rows.row(first(i)), rows.width, packed_columns, size(rows.n, i), size(columns.n, j), rows.dim, scale,
            mask.seen_from(first(i), first(j))};
  }

  // Calls meet(i, j) for every pair of blocks; where symmetric once for both.
  template <typename Meet>
  void each(const Meet& meet) const {
    const int64_t grain = ssl_fast::grain(4. * block * block * rows.dim);
    if (symmetric)
      tournament(count(rows.n), grain, meet);
    else
      rotation(count(rows.n), count(columns.n), grain, meet);
  }
};

// The positives' sign(s) * similarity of each row, and what is counted: those above. Empty: nothing is.
template <typename T>
struct RankCounts {
  std::vector<T> positives;
  std::vector<int64_t> of_rows, of_columns;

  RankCounts() = default;
  // positive: of n rows and, with columns, of as many columns.
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

  // Of one block of rows and one of columns; on the diagonal of a symmetric matrix rows alone.
  bool ranks(const Blocks<T>& blocks, int64_t i, int64_t j, Ranks<T>& out) {
    if (positives.empty()) return false;
    const int64_t r = blocks.first(i), c = blocks.first(j);
    std::vector<int64_t>& columns = blocks.symmetric ? of_rows : of_columns;
    const bool both = !columns.empty() && !(blocks.symmetric && i == j);
    out = {positives.data() + r, positives.data() + c, of_rows.data() + r, both ? columns.data() + c : nullptr};
    return true;
  }
};

// Adds the sums of E to row_sums (rows) and, unless null, column_sums (columns): where symmetric both are of rows.
template <typename T>
void fixed_sums(const Blocks<T>& blocks, T* row_sums, T* column_sums, RankCounts<T>& counts) {
  blocks.each([&](int64_t i, int64_t j) {
    Ranks<T> ranks{};
    const bool ranked = counts.ranks(blocks, i, j, ranks);
    const bool both = column_sums && !(blocks.symmetric && i == j);
    kernels<T>().exp_sums(blocks.tile(i, j), blocks.shift, row_sums + blocks.first(i),
                          both ? column_sums + blocks.first(j) : nullptr, ranked ? &ranks : nullptr);
  });
}

// A power of two near the largest gradient: times 1 / Z, up to exp(80), gradients themselves could overflow.
template <typename T>
T gradient_unit(const std::vector<T>& gradients) {
  T largest = 0;
  for (const T x : gradients) largest = std::max(largest, std::abs(x));
  return largest > 0 && std::isfinite(largest) ? T(std::exp2(std::ilogb(largest))) : T(1);
}

// Fills a tile with the weights of each pair, and adds the columns that each row receives by them to d_rows,
// unless null, and the rows that each column receives to d_columns. Where symmetric, d_columns are d_rows.
template <typename T, typename Weights>
void add_attractions(const Blocks<T>& blocks, T* d_rows, T* d_columns, const Weights& weights) {
  const at::Tensor tiles = new_empty<T>({at::get_num_threads(), kTile + kTileSlack, kTile});
  const int64_t width = blocks.rows.width;
  blocks.each([&](int64_t i, int64_t j) {
    const auto& kernel = kernels<T>();
    T* tile = tiles.template data_ptr<T>() + at::get_thread_num() * tiles.stride(0);
    const int64_t r = blocks.first(i), c = blocks.first(j);
    const int64_t m = blocks.size(blocks.rows.n, i), n = blocks.size(blocks.columns.n, j);
    weights(blocks.tile(i, j), r, c, tile);
    if (d_rows) kernel.add_rows(tile, m, n, blocks.columns.row(c), width, width, d_rows + r * width);
    if (d_columns && !(blocks.symmetric && i == j))
      kernel.add_columns(tile, n, m, blocks.rows.row(r), width, width, d_columns + c * width);
  });
}

}  // namespace ssl_fast
