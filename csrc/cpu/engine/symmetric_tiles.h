// All pairs of two sets of unit rows, tile by tile, with the fixed shift |s|: E_ik = exp(s <u_i, v_k> - |s|) is at most
// 1 and serves the sums of row i and of column k. Where both sets are the same rows, each pair is computed once.
#pragma once
#include "block_schedule.h"
#include "kept_pairs.h"
#include "online_softmax.h"

#include <atomic>
#include <cmath>
#include <vector>

namespace ssl_fast {

// Up to so many blocks a side, each row has a sum for every block of the other side (BlockSums), and no tile waits for
// another: rounds of few blocks would leave threads without work. With more blocks these sums, one number for each row
// and block, could take more memory than the rows.
constexpr int64_t kMostBlocksApart = 64;

template <typename T>
struct SymmetricTiles {
  const UnitRows<T>&rows, &columns;
  const Mask<T> mask;
  const bool same_rows;  // whether both references are to one UnitRows; equal values in two of them do not count
  const at::Tensor packed;
  const T scale, shift;     // s log2(e) and its size, because scores are the log2 of what is summed
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

  // How many rows or columns a tile has, where the larger side has n rows. It fixes the order of sums, so it depends on
  // the shapes, the type and the SIMD level, never on the threads.
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
    if (same_rows)
      visit_symmetric_pairs(count(rows.n), tile_grain(), visit);
    else
      visit_all_pairs(count(rows.n), count(columns.n), tile_grain(), visit);
  }

  // The same for visits that write their sums to BlockSums.
  template <typename Visit>
  void each_with_block_sums(const Visit& visit) const {
    if (std::max(count(rows.n), count(columns.n)) > kMostBlocksApart) return each(visit);
    visit_independent_pairs(count(rows.n), count(columns.n), same_rows, tile_grain(), visit);
  }

  // The fewest tiles for which a thread is started.
  int64_t tile_grain() const { return grain(4. * block * block * rows.dim); }
};

// Sums over the pairs of each row of one side (n rows) with the blocks of the other side. While these blocks are few,
// each has a sum of its own for every row, so that no two tiles write to the same memory, and `sum` adds them up in the
// order of the blocks. With more blocks there is one sum for every row, and tiles add to it in rounds.
template <typename T>
class BlockSums {
 public:
  BlockSums(int64_t n, int64_t blocks)
      : n_(n), sums_per_row_(blocks > kMostBlocksApart ? 1 : blocks), sums_(sums_per_row_ * n) {}

  // Where the sums of rows `row`, `row` + 1, ... over block `block` of the other side are.
  T* of(int64_t block, int64_t row) { return sums_.data() + (sums_per_row_ > 1 ? block * n_ : 0) + row; }

  double sum(int64_t row) const {
    double sum = 0;
    for (int64_t block = 0; block < sums_per_row_; block++) sum += sums_[block * n_ + row];
    return sum;
  }

 private:
  const int64_t n_, sums_per_row_;
  std::vector<T> sums_;  // (sums_per_row, n)
};

// Zeros where no tile writes to the matrix of kept pairs: beyond its rows and columns, and where both sets are the same
// rows, in the blocks below the diagonal.
template <typename T>
void clear_unwritten(const SymmetricTiles<T>& tiles) {
  if (!tiles.kept) return;
  tiles.kept.clear_padding(tiles.rows.n, tiles.columns.n);
  if (!tiles.same_rows) return;
  at::parallel_for(0, tiles.rows.n, grain(0.5 * tiles.rows.n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::fill_n(tiles.kept.tile(i, 0), i / tiles.block * tiles.block, T(0));
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

  // Calls use(ranks), which computes the tile (i, j) and adds to the counts of ranks, and then adds these to the counts
  // of all rows and columns. A tile on the diagonal of rows with themselves counts for its rows alone, because its
  // columns are the same rows. ranks is null where nothing is counted.
  template <typename Use>
  void count(const SymmetricTiles<T>& tiles, int64_t i, int64_t j, const Use& use) {
    if (positives.empty()) return use(nullptr);
    const int64_t r = tiles.first(i), c = tiles.first(j);
    std::vector<int64_t>& columns = tiles.same_rows ? of_rows : of_columns;
    const bool both = !columns.empty() && !(tiles.same_rows && i == j);
    int64_t rows_above[kTile] = {}, columns_above[kTile] = {};
    const Ranks<T> ranks{positives.data() + r, both ? positives.data() + c : nullptr, rows_above,
                         both ? columns_above : nullptr};
    use(&ranks);
    add(rows_above, tiles.size(tiles.rows.n, i), of_rows.data() + r);
    if (both) add(columns_above, tiles.size(tiles.columns.n, j), columns.data() + c);
  }

 private:
  // Other tiles may add to the same counts at the same time; the order of whole numbers does not matter.
  static void add(const int64_t* counts, int64_t n, int64_t* sums) {
    for (int64_t i = 0; i < n; i++)
      if (counts[i]) std::atomic_ref(sums[i]).fetch_add(counts[i], std::memory_order_relaxed);
  }
};

// log2 of the sums of exp2(score): of each row, then, with `columns`, of each column. Where both sets are the same
// rows, the sums of the columns are those of the rows, and are returned once.
template <typename T>
std::vector<double> fixed_shift_log_sums(const SymmetricTiles<T>& tiles, bool columns, RankCounts<T>& counts) {
  clear_unwritten(tiles);
  const int64_t n = tiles.rows.n, m = tiles.same_rows || !columns ? 0 : tiles.columns.n;
  BlockSums<T> of_rows(n, tiles.count(tiles.columns.n)), of_columns(m, tiles.count(n));
  BlockSums<T>& down = tiles.same_rows ? of_rows : of_columns;
  tiles.each_with_block_sums([&](int64_t i, int64_t j) {
    const int64_t r = tiles.first(i), c = tiles.first(j);
    const bool both = tiles.same_rows ? i != j : columns;
    counts.count(tiles, i, j, [&](const Ranks<T>* ranks) {
      kernels<T>().exp_sums(tiles.tile(i, j), tiles.shift, of_rows.of(j, r), both ? down.of(i, c) : nullptr, ranks,
                            tiles.kept.tile(r, c), tiles.kept.stride);
    });
  });
  std::vector<double> out;
  for (int64_t i = 0; i < n; i++) out.push_back(std::log2(of_rows.sum(i)) + tiles.shift);
  for (int64_t i = 0; i < m; i++) out.push_back(std::log2(of_columns.sum(i)) + tiles.shift);
  return out;
}

// Rows with each other: of each row i log2 of the sum of exp2(score_ik) over all k for which the mask lets the pair
// (i, k) count. kept: where the pairs go, if anywhere.
template <typename T>
std::vector<double> symmetric_log_sums(const UnitRows<T>& rows, const Scale& scale, const Mask<T>& mask,
                                       const KeptPairs<T>& kept, RankCounts<T>& counts) {
  if (scale.allows_fixed_shift(rows.normalized))
    return fixed_shift_log_sums(SymmetricTiles<T>(rows, rows, scale, mask, kept), true, counts);
  std::vector<double> out(rows.n);
  const auto tiles = QueryKeyTiles<T>::of_unit_rows(rows, rows, scale, mask, KeptDots<T>::written(kept));
  const PartialSums<T> partial(tiles, false, counts.positives);
  for (int64_t i = 0; i < rows.n; i++) {
    out[i] = partial.log_sum(i);
    if (!counts.positives.empty()) counts.of_rows[i] = partial.rank(i);
  }
  return out;
}

}  // namespace ssl_fast
